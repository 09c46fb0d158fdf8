"""Stable Diffusion 1.x: CLIP's text encoder, a UNet that predicts eps, a VAE of factor 8 (Rombach et al. 2022). Its
inpainting and instruct-pix2pix checkpoints too."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from modules.families import formats, ldm
from modules.families.family import Conditioning, LatentFormat, Model, Report, TextOptions
from modules.families.hints import LayoutError, config_of, hints_from
from modules.families.latent import LatentModel, Trained, trained_as
from modules.families.text import ClipEncoder
from modules.families.text_encoders import TOKENIZER, load_clip
from modules.families.unet import load_unet
from modules.families.vae import Vae, load_vae
from modules.library.header import Header, ModelFileError
from modules.prompt.tokens import Tokenizer
from modules.runtime.device import Part, Placement


class SD1Family:
    name = "SD 1.x"
    wide: tuple[Part, ...] = ()

    def matches(self, header: Header) -> bool:
        return (
            f"{ldm.UNET}input_blocks.0.0.weight" in header.tensors
            and f"{ldm.clip_prefix(header)}final_layer_norm.weight" in header.tensors
        )

    def load(self, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
        facts = config_of("sd1", "latent")
        latent = LatentFormat(facts["channels"], facts["factor"], facts["scale"])
        try:
            hints = hints_from(config, header.metadata)
            with formats.opened(path, header, report.read) as file:
                report("text encoder")
                text = load_clip(file, ldm.clip_prefix(header), config_of("sd1", "text_encoder"), hints, placement)
                report("UNet")
                unet = load_unet(file, config_of("sd1", "unet"), hints, latent, placement)
                report("VAE")
                vae = load_vae(file, config_of("sd1", "vae"), latent, placement)
        except LayoutError as error:
            raise ModelFileError(path, str(error)) from error
        encoder = ClipEncoder(text, Tokenizer.from_folder(TOKENIZER), placement.device)
        return SD1(encoder, unet, vae, trained_as(facts, header, hints), placement)


class SD1(LatentModel):
    """A loaded SD 1.x checkpoint (see family.Model)."""

    family = SD1Family.name

    def __init__(self, encoder: ClipEncoder, unet: Any, vae: Vae, trained: Trained, placement: Placement):
        super().__init__(unet, vae, {"text_encoder": encoder.network}, trained, placement)
        self.encoder = encoder

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        return Conditioning(self.encoder.encode(texts, options))

    def text_key(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Hashable:
        return self.encoder.key(texts, options)
