"""Which words the UNet listens to: the list that the page offers shall hold what the starter really draws."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.objective import q_sample, scaled_linear_alphas_bar
from tools.starter.captions import DEFAULT_STYLE, WHITE
from tools.starter.latents import Latents
from tools.starter.sampling import encode_prompts

TIMESTEP = 700  # where shapes form
BATCH = 32


@torch.no_grad()
def hearing(
    unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, latents: Latents
) -> dict[str, float]:
    """By name: how many times larger the loss is with another drawing's name than with the right one.

    About 1 means that the word changes nothing.
    """
    plain = [
        k
        for k, (drawing, background) in enumerate(zip(latents.drawings, latents.backgrounds, strict=True))
        if drawing.style == DEFAULT_STYLE and background == WHITE
    ]
    others = np.random.default_rng(0).permutation(plain)
    alphas_bar = scaled_linear_alphas_bar()
    found: dict[str, float] = {}
    for start in range(0, len(plain), BATCH):
        picked = plain[start : start + BATCH]
        names = [latents.drawings[k].concept.name for k in picked]
        wrong = [latents.drawings[k].concept.name for k in others[start : start + BATCH]]
        z = latents.z[picked]
        epsilon = torch.randn(z.shape, generator=torch.Generator().manual_seed(start))
        t = torch.full((len(picked),), TIMESTEP)
        x = q_sample(z, t, epsilon, alphas_bar)
        losses = [
            (unet(x, t, encode_prompts(text, tokenizer, said)).sample - epsilon).square().mean((1, 2, 3))
            for said in (names, wrong)
        ]
        found |= dict(zip(names, (losses[1] / losses[0]).tolist(), strict=True))
    return found
