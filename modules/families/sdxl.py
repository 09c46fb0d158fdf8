"""Stable Diffusion XL (Podell et al. 2023): two text encoders, and a UNet that is also told the picture's size and
where it was cut. Its refiner has OpenCLIP only, and is told how beautiful the picture should be."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import formats, ldm, open_clip
from modules.families.family import Conditioning, LatentFormat, Model, Report, TextOptions
from modules.families.hints import Hints, LayoutError, config_of, hints_from
from modules.families.latent import LatentModel, Trained, trained_as
from modules.families.text import ClipEncoder
from modules.families.text_encoders import OPEN_CLIP_PAD, TOKENIZER, load_clip, load_open_clip
from modules.families.unet import load_unet
from modules.families.vae import Vae, load_vae
from modules.families.weights import Weights
from modules.library.header import Header, ModelFileError
from modules.prompt.tokens import Tokenizer
from modules.runtime.device import Part, Placement

CLIP_L = "conditioner.embedders.0.transformer."
BIG_G = "conditioner.embedders.1.model."
REFINERS_BIG_G = "conditioner.embedders.0.model."
HEAD_CHANNELS = 64
EDM = {"edm_vpred.sigma_max": "CosXL", "edm_mean": "Playground v2.5"}  # tensors that tell of another noise schedule


class SDXLFamily:
    name = "SDXL"
    wide: tuple[Part, ...] = ()

    def matches(self, header: Header) -> bool:
        return (
            f"{ldm.UNET}input_blocks.0.0.weight" in header.tensors
            and f"{ldm.clip_prefix(header, CLIP_L)}final_layer_norm.weight" in header.tensors
            and open_clip.is_there(header, BIG_G)
        )

    def load(self, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
        return load(self.name, path, header, config, placement, report)


class RefinerFamily:
    name = "SDXL refiner"
    wide: tuple[Part, ...] = ()

    def matches(self, header: Header) -> bool:
        unet = f"{ldm.UNET}input_blocks.0.0.weight"
        return unet in header.tensors and open_clip.is_there(header, REFINERS_BIG_G)

    def load(self, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
        return load(self.name, path, header, config, placement, report)


def load(family: str, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
    """Raises ModelFileError when the file is not what its header promised."""
    facts = config_of("sdxl", "latent")
    latent = LatentFormat(facts["channels"], facts["factor"], facts["scale"])
    try:
        refuse_others(header)
        hints = hints_from(config, header.metadata).or_head_channels(HEAD_CHANNELS)
        with formats.opened(path, header, report.read) as file:
            report("text encoders")
            clip_l = load_clip_l(file, hints, placement) if family == SDXLFamily.name else None
            big_g = load_big_g(file, BIG_G if clip_l else REFINERS_BIG_G, hints, placement)
            report("UNet")
            unet = load_unet(file, config_of("sdxl", "unet"), hints, latent, placement)
            report("VAE")
            vae = load_vae(file, config_of("sdxl", "vae"), latent, placement)
        model = SDXL(family, clip_l, big_g, unet, vae, trained_as(facts, header, hints), placement)
        check_vector(model)
    except LayoutError as error:
        raise ModelFileError(path, str(error)) from error
    return model


def refuse_others(header: Header) -> None:
    """Raises LayoutError for relatives with another kind of noise levels: their pictures would be mud."""
    for tensor, name in EDM.items():
        if tensor in header.tensors:
            raise LayoutError(f"it is of the kind of {name}, trained with the noise of EDM, which is not supported")


def load_clip_l(file: Weights, hints: Hints, placement: Placement) -> ClipEncoder:
    prefix = ldm.clip_prefix(file.header, CLIP_L)
    network = load_clip(file, prefix, config_of("sdxl", "text_encoder"), hints, placement)
    return ClipEncoder(network, Tokenizer.from_folder(TOKENIZER), placement.device, eleventh_layer)


def load_big_g(file: Weights, prefix: str, hints: Hints, placement: Placement) -> ClipEncoder:
    base = config_of("sdxl", "text_encoder_2")
    network = load_open_clip(file, prefix, base, hints, placement, projected=True)
    return ClipEncoder(network, Tokenizer.from_folder(TOKENIZER, OPEN_CLIP_PAD), placement.device, last_but_one)


def eleventh_layer(network: Any, layers: Sequence[Tensor], options: TextOptions) -> Tensor:
    """CLIP-L's last layer but one (of twelve) as it is; clip skip counts only where the user said so, and then 1 is the
    last."""
    return layers[-min(options.clip_skip, len(layers))] if options.clip_l_skip else layers[-2]


def last_but_one(network: Any, layers: Sequence[Tensor], options: TextOptions) -> Tensor:
    """ViT-bigG's, as it is, whatever clip skip says."""
    return layers[-2]


class SDXL(LatentModel):
    """A loaded SDXL checkpoint, or its refiner, which has no CLIP-L (see family.Model)."""

    def __init__(
        self,
        family: str,
        clip_l: ClipEncoder | None,
        big_g: ClipEncoder,
        unet: Any,
        vae: Vae,
        trained: Trained,
        placement: Placement,
    ):
        text_encoders = {"text_encoder": clip_l.network} if clip_l else {}
        text_encoders["text_encoder_2"] = big_g.network
        super().__init__(unet, vae, text_encoders, trained, placement)
        self.family, self.clip_l, self.big_g = family, clip_l, big_g

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        cross, pooled = self.big_g.encode_with_pooled(texts, options)
        if self.clip_l:
            cross = torch.cat([self.clip_l.encode(texts, options), cross], dim=-1)
        if negative and not any(texts):  # as in training: no negative prompt is zeros, not the encoding of ""
            cross, pooled = torch.zeros_like(cross), torch.zeros_like(pooled)
        numbers = torch.tensor(self.numbers(options, negative), dtype=pooled.dtype, device=pooled.device)
        return Conditioning(cross, torch.cat([pooled, numbers.expand(len(texts), -1)], dim=1))

    def text_key(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Hashable:
        small = self.clip_l.key(texts, options) if self.clip_l else None
        nothing = negative and not any(texts)
        return small, self.big_g.key(texts, options), nothing, self.numbers(options, negative)

    def numbers(self, options: TextOptions, negative: bool) -> tuple[float, ...]:
        """What the UNet is told of the picture."""
        size, corner = (options.height, options.width), (options.crop_top, options.crop_left)
        if self.clip_l:
            return (*size, *corner, *size)  # of the training picture; where it was cut; what it became
        return (*size, *corner, options.negative_aesthetic_score if negative else options.aesthetic_score)

    def _added(self, vector: Tensor) -> Mapping[str, Tensor]:
        width = self.big_g.network.config.projection_dim
        return {"text_embeds": vector[:, :width].to(self.unet.dtype), "time_ids": vector[:, width:]}


def check_vector(model: SDXL) -> None:
    """Raises LayoutError where text encoder and UNet do not fit."""
    made = model.big_g.network.config.projection_dim
    made += len(model.numbers(TextOptions(), False)) * model.unet.config.addition_time_embed_dim
    taken = model.unet.config.projection_class_embeddings_input_dim
    if made != taken:
        raise LayoutError(f"its UNet wants {taken} numbers beside the timestep, text encoder and sizes give {made}")
