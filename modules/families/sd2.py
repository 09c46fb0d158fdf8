"""Stable Diffusion 2.x: OpenCLIP's ViT-H as text encoder, its last layer but one; a UNet that predicts eps (512 pixels)
or v (768 pixels). Also its inpainting checkpoints; not those that take a depth map."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import formats, ldm, open_clip
from modules.families.family import Conditioning, LatentFormat, Model, Report, TextOptions
from modules.families.hints import Hints, LayoutError, Prediction, config_of, hints_from
from modules.families.latent import LatentModel, Trained, stated_prediction, trained_as
from modules.families.text import ClipEncoder
from modules.families.text_encoders import OPEN_CLIP_PAD, TOKENIZER, load_open_clip
from modules.families.unet import load_unet
from modules.families.vae import Vae, load_vae
from modules.library.header import Header, ModelFileError
from modules.prompt.tokens import Tokenizer
from modules.runtime.device import Part, Placement

TEXT = "cond_stage_model.model."
HEAD_CHANNELS = 64


class SD2Family:
    name = "SD 2.x"
    wide: tuple[Part, ...] = ("unet",)  # the scores of its attention, in the model for 768 pixels

    def matches(self, header: Header) -> bool:
        return f"{ldm.UNET}input_blocks.0.0.weight" in header.tensors and open_clip.is_there(header, TEXT)

    def load(self, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
        facts = config_of("sd2", "latent")
        latent = LatentFormat(facts["channels"], facts["factor"], facts["scale"])
        try:
            refuse_others(header)
            hints = hints_from(config, header.metadata).or_head_channels(HEAD_CHANNELS)
            with formats.opened(path, header, report.read) as file:
                report("text encoder")
                text = load_open_clip(file, TEXT, config_of("sd2", "text_encoder"), hints, placement, projected=False)
                report("UNet")
                unet = load_unet(file, config_of("sd2", "unet"), hints, latent, placement)
                report("VAE")
                vae = load_vae(file, config_of("sd2", "vae"), latent, placement)
        except LayoutError as error:
            raise ModelFileError(path, str(error)) from error
        encoder = ClipEncoder(text, Tokenizer.from_folder(TOKENIZER, OPEN_CLIP_PAD), placement.device, last_normalised)
        prediction = prediction_of(header, hints, unet, placement)
        return SD2(encoder, unet, vae, trained_as(facts, header, hints, prediction), placement)


class SD2(LatentModel):
    """A loaded SD 2.x checkpoint (see family.Model)."""

    family = SD2Family.name

    def __init__(self, encoder: ClipEncoder, unet: Any, vae: Vae, trained: Trained, placement: Placement):
        super().__init__(unet, vae, {"text_encoder": encoder.network}, trained, placement)
        self.encoder = encoder

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        return Conditioning(self.encoder.encode(texts, options))

    def text_key(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Hashable:
        return self.encoder.key(texts, options)


def refuse_others(header: Header) -> None:
    """Raises LayoutError for relatives of SD 2.x that want more than a prompt."""
    if any(name.startswith("depth_model.") for name in header.tensors):
        raise LayoutError("it is an SD 2.x depth model, which needs a depth map beside the prompt; it is not supported")
    if any(name.startswith(("embedder.model.", "noise_augmentor.")) for name in header.tensors):
        raise LayoutError("it is an SD 2.x unCLIP model, which takes pictures for prompts; it is not supported")


def last_normalised(network: Any, layers: Sequence[Tensor], options: TextOptions) -> Tensor:
    """The last layer of those that were loaded, normalised; A1111 knows no clip skip here."""
    z: Tensor = network.final_layer_norm(layers[-1])
    return z


def prediction_of(header: Header, hints: Hints, unet: Any, placement: Placement) -> Prediction:
    """As the file says, else as the UNet behaves."""
    stated = stated_prediction(header, hints)
    if stated or unet.config.in_channels != unet.config.out_channels:
        return stated or "epsilon"  # the published inpainting checkpoint predicts eps
    return prediction_by_trial(unet, placement)


@torch.inference_mode()
def prediction_by_trial(unet: Any, placement: Placement) -> Prediction:
    """A1111's trial: shown one grey value at the noisiest step, a UNet that predicts eps gives about the same back, one
    that predicts v something well below."""
    dtype, device = placement.unet_dtype, placement.loads_to
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=dtype, device=device)
    context = torch.ones((1, 2, unet.config.cross_attention_dim), dtype=dtype, device=device)
    given = unet(x, torch.tensor([999], device=device), context, return_dict=False)[0]
    return "v_prediction" if (given.float() - x.float()).mean() < -1 else "epsilon"
