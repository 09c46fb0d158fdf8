"""What the engine needs of a model, whatever its family, and what a family must offer to be found and loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from modules.library.header import Header
from modules.prompt.attention import Emphasis
from modules.runtime.device import Placement


@dataclass(frozen=True)
class LatentFormat:
    """How latents of a family look, and how to glimpse a picture in one."""

    channels: int
    factor: int  # pixels a latent cell, in each direction
    scale: float  # latents of the UNet = VAE latents × scale
    preview_weight: tuple[tuple[float, ...], ...]  # (3, channels): latent of the UNet -> RGB in 0–1
    preview_bias: tuple[float, float, float]


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
    sigmas: Tensor  # (T,) float32, rising: sqrt((1 - ᾱ) / ᾱ)
    device: Any

    def encode(self, prompts: Sequence[str], options: TextOptions) -> Tensor:
        """(len(prompts), 77·n, D): all prompts padded to the same number n of chunks."""

    def predict_eps(self, x: Tensor, timestep: Tensor, conditioning: Tensor) -> Tensor:
        """x: (B, C, H, W), already scaled as the network wants it; timestep: (B,), may be fractional -> noise, as x."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) latents of the UNet -> (B, 3, 8H, 8W) pixels in 0–1."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens, room): what the token counter shows, such as 12/75."""


class Family(Protocol):
    """One architecture of models."""

    name: str

    def matches(self, header: Header) -> bool:
        """Whether the file is of this family; the tensors' names and shapes are enough to tell."""

    def load(self, path: Path, header: Header, placement: Placement, on_progress: Callable[[str], None]) -> Model:
        """Raises ModelFileError when the file is not what its header promised."""


Metadata = Mapping[str, str]
