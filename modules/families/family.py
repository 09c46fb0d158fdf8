"""What the engine needs of a model, whatever its family, and what a family must offer to be found and loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from modules.library.header import Header
from modules.prompt.attention import Emphasis
from modules.runtime.device import Placement


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


class Model(Protocol):
    """A loaded checkpoint. Tensors are float32 at these borders, whatever the networks compute in."""

    latent: LatentFormat
    alphas_cumprod: Tensor  # (T,) float32, falling: ᾱ of the training schedule
    device: torch.device

    def encode(self, texts: Sequence[str], options: TextOptions) -> Tensor:
        """(len(texts), 77·n, D): all texts filled up to the same number n of chunks."""

    def predict_eps(self, x: Tensor, timestep: Tensor, conditioning: Tensor) -> Tensor:
        """x: (B, C, H, W), scaled as in training (unit variance); timestep: (B,), may be fractional -> noise, as x."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) latents of the UNet -> (B, 3, 8H, 8W) pixels in 0–1."""

    def glimpse(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W) pixels in 0–1: a linear guess at the picture, for live previews."""


class Family(Protocol):
    """One architecture of models."""

    name: str

    def matches(self, header: Header) -> bool:
        """Whether the file is of this family; the tensors' names and shapes are enough to tell."""

    def load(
        self, path: Path, header: Header, config: Path | None, placement: Placement, report: Callable[[str], None]
    ) -> Model:
        """`config`: the .yaml beside the file, if any; `report` takes what is being done, for people.

        Raises ModelFileError when the file is not what its header promised.
        """
