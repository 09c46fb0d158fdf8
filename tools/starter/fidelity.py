"""How well the VAE gives back what it is shown, for every art style, on white and on coloured backgrounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from tools.starter.artwork import load_artwork
from tools.starter.captions import WHITE
from tools.starter.latents import composite, load_index
from tools.starter.vae import as_images, peak_signal_to_noise, reconstruct

BATCH = 8


def examples(run: Path, each: int) -> dict[str, list[int]]:
    """Numbers of cached latents, spread evenly: for "noto, white" and so on, `each` or as many as there are."""
    _, drawings = load_artwork(run)
    kinds: dict[str, list[int]] = {}
    for k, (number, background) in enumerate(load_index(run)):
        on = background if background == WHITE else "coloured"
        kinds.setdefault(f"{drawings[number].style}, {on}", []).append(k)
    return {
        kind: [numbers[k] for k in np.linspace(0, len(numbers) - 1, min(each, len(numbers))).astype(int)]
        for kind, numbers in kinds.items()
    }


def pictures_of(artwork: NDArray[np.uint8], index: Sequence[tuple[int, str]], device: torch.device) -> Tensor:
    """(B, 3, H, W) in -1..1: drawings, by number, on their backgrounds."""
    return as_images([composite(artwork[number], background) for number, background in index], device)


@torch.no_grad()
def fidelity(run: Path, vae: AutoencoderKL, numbers: list[int], device: torch.device) -> float:
    """Mean over these pictures of their peak signal to noise ratio in dB, there and back."""
    artwork, index = load_artwork(run)[0], load_index(run)
    found = []
    for start in range(0, len(numbers), BATCH):
        x = pictures_of(artwork, [index[k] for k in numbers[start : start + BATCH]], device)
        found += [peak_signal_to_noise(y.float(), one) for y, one in zip(reconstruct(vae, x), x, strict=True)]
    return float(np.mean(found))
