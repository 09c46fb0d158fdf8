"""Pictures of a checkpoint as the product makes them: with its loader, its samplers and classifier-free guidance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.diffusion.denoisers import denoiser_for, levels_for
from modules.diffusion.guidance import cfg
from modules.diffusion.names import SAMPLER_INFOS
from modules.diffusion.samplers import SAMPLERS
from modules.diffusion.schedules import sigmas_for
from modules.families.family import UNTOLD, Conditioning, Model, TextOptions
from modules.families.sd1 import SD1Family
from modules.library.header import read_header
from modules.runtime.device import Placement

BATCH = 8


def load(checkpoint: Path) -> Model:
    """In fp32 on the CPU, so that the numbers are the same everywhere."""
    whole = torch.float32
    placement = Placement(torch.device("cpu"), whole, whole, whole, channels_last=False)
    yaml = checkpoint.with_suffix(".yaml")
    return SD1Family().load(checkpoint, read_header(checkpoint), yaml if yaml.exists() else None, placement, UNTOLD)


@torch.no_grad()
def draw_all(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    width: int = 128,
    height: int = 128,
    steps: int = 20,
    cfg_scale: float = 5.0,
    sampler: str = "DPM++ 2M",
) -> NDArray[np.uint8]:
    """(N, height, width, 3), one picture for each prompt with its seed."""
    pictures = []
    for start in range(0, len(prompts), BATCH):
        latents = sample(
            model,
            prompts[start : start + BATCH],
            seeds[start : start + BATCH],
            (height // 8, width // 8),
            steps,
            cfg_scale,
            sampler,
        )
        pictures.append(model.decode(latents).mul(255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(pictures)


def sample(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    cells: tuple[int, int],
    steps: int,
    cfg_scale: float,
    sampler: str,
) -> Tensor:
    """(B, 4, *cells)"""
    info = next(info for info in SAMPLER_INFOS if info.name == sampler)
    empty, asked = (model.encode(texts, TextOptions()).cross for texts in ([""], list(prompts)))
    context = Conditioning(torch.cat([asked, empty.expand(len(asked), -1, -1)]))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        both = model.predict_eps(torch.cat([x, x]), t.expand(2 * len(x)), context)
        with_prompt, without = both.chunk(2)
        return cfg(with_prompt, without, cfg_scale)

    sigmas = sigmas_for(info, "Automatic", steps, levels_for(info, model.alphas_cumprod))
    noise = torch.stack([torch.randn(4, *cells, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    x0 = denoiser_for(info, predict, model.alphas_cumprod)
    return SAMPLERS[info.name](x0, noise * sigmas[0], sigmas, lambda *_: noise, lambda step: None)
