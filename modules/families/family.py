"""What the engine needs of a model, whatever its family, and what a family must offer to be found and loaded."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from modules.library.header import Header
from modules.prompt.attention import Emphasis
from modules.runtime.device import Part, Placement

# What a UNet may take beside the latent, in channels: mask and masked picture; the picture to edit.
INPAINTING, EDITING = 5, 4


@dataclass(frozen=True)
class LatentFormat:
    """How latents of a family look."""

    channels: int
    factor: int  # pixels a latent cell, in each direction
    scale: float  # latents of the UNet = VAE latents × scale


@dataclass(frozen=True)
class TextOptions:
    """The settings that change what a prompt means to the text encoder."""

    emphasis: Emphasis = "Original"
    clip_skip: int = 1  # 1: the last layer of the text encoder
    comma_backtrack: int = 20  # tokens
    width: int = 512  # pixels, as the sizes below: what SDXL is told of the picture
    height: int = 512
    crop_top: int = 0
    crop_left: int = 0
    aesthetic_score: float = 6.0  # SDXL's refiner, for prompts and for negative prompts
    negative_aesthetic_score: float = 2.5
    clip_l_skip: bool = False  # whether clip_skip counts for SDXL's CLIP-L too
    embeddings: Any = None  # textual inversions that the prompt may name
    old_emphasis: bool = False  # weights as A1111 read them in 2022


@dataclass(frozen=True)
class Conditioning:
    """N encoded prompts."""

    cross: Tensor  # (N, 77·n, D): what the UNet attends to
    vector: Tensor | None = None  # (N, V): added to the embedding of the timestep, in families that do so

    def __len__(self) -> int:
        return len(self.cross)

    @property
    def nbytes(self) -> int:
        return self.cross.nbytes + (0 if self.vector is None else self.vector.nbytes)

    def __getitem__(self, rows: slice) -> "Conditioning":
        return Conditioning(self.cross[rows], None if self.vector is None else self.vector[rows])


class Model(Protocol):
    """A loaded checkpoint. Tensors are float32 at these borders, whatever the networks compute in."""

    family: str  # its family's name
    latent: LatentFormat
    alphas_cumprod: Tensor  # (T,) float32, falling: ᾱ of the training schedule
    device: torch.device
    taken: Mapping[str, str]  # parts that came from other files: "Text encoder from", "VAE from": names
    placement: Placement
    image_channels: int  # what the UNet takes beside the latent: 0, INPAINTING or EDITING (instruct-pix2pix)

    @property
    def components(self) -> Mapping[str, Any]:
        """unet, vae, text_encoder, text_encoder_2, as far as it has them: diffusers' and transformers' modules."""

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        """All texts filled up to the same number n of chunks. `negative`: they are negative prompts."""

    def text_key(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Hashable:
        """Alike for what `encode` makes the same of, as long as the text encoders' weights are the same."""

    def predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None) -> Tensor:
        """What the network says, noise or v, as x. x: (B, C, H, W), scaled as in training (unit variance); timestep:
        (B,), may be fractional. `beside`: (B, image_channels, H, W), needed where image_channels is not 0."""

    def eps_of(self, predicted: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        """The noise in x, by what `predict` gave for it, or by a mixture of such predictions."""

    def x0_of(self, predicted: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent in x = x0 + sigma · eps, by a prediction for x / sqrt(sigma² + 1). Exact also where sigma
        is in the thousands, which eps is not."""

    def predict_eps(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None
    ) -> Tensor:
        """`predict`, and `eps_of` it."""

    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in 0–1 -> latents of the UNet, drawn from the VAE's posterior with `noise` ~ N(0, 1), of
        the latents' shape (B, C, H/8, W/8)."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) latents of the UNet -> (B, 3, 8H, 8W) pixels in 0–1."""

    def glimpse(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W) pixels in 0–1: a linear guess at the picture, for live previews."""


@dataclass(frozen=True)
class Report:
    """Is told what a load does. What it raises ends the load."""

    part: Callable[[str], None] = lambda name: None  # what is being built now, for people
    read: Callable[[int], None] = lambda count: None  # so many more bytes of the checkpoint have been read

    def __call__(self, name: str) -> None:
        self.part(name)


UNTOLD = Report()


class Family(Protocol):
    """One architecture of models."""

    name: str
    wide: tuple[Part, ...]  # parts that leave fp16's range: bf16 suits them better, where the device multiplies it

    def matches(self, header: Header) -> bool:
        """Whether the file is of this family; the tensors' names and shapes are enough to tell."""

    def load(self, path: Path, header: Header, config: Path | None, placement: Placement, report: Report) -> Model:
        """`config`: the .yaml beside the file, if any.

        Raises ModelFileError when the file is not what its header promised.
        """
