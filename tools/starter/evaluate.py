"""Stage sheet: look at what the starter draws, and measure whether it listens.

Makes a contact sheet with captions, and prints the loss with the right caption, with another
drawing's caption and with none: a network that ignores its prompt has the same loss in all three.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.objective import q_sample, scaled_linear_alphas_bar
from tools.starter.captions import DEFAULT_STYLE, WHITE
from tools.starter.export import load_exported
from tools.starter.latents import Latents, load_latents
from tools.starter.sampling import PROMPTS, decode, encode_prompts, sample_latents
from tools.starter.text import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionLoss:
    """Mean squared error of the predicted noise at one timestep."""

    timestep: int
    right: float
    wrong: float
    empty: float


def contact_sheet(checkpoint: Path, run: Path, prompts: list[str], file: Path, seed: int, cfg_scale: float) -> None:
    unet, vae, text = load_exported(checkpoint)
    tokenizer = load_tokenizer(run)
    columns, cell, line = 10, 128, 14  # pixels
    rows = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (columns * (cell + 2), rows * (cell + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for start in range(0, len(prompts), columns):
        row = prompts[start : start + columns]
        z = sample_latents(unet, text, tokenizer, row, cfg_scale=cfg_scale, seed=seed + start)
        for k, picture in enumerate(decode(vae, z)):
            left, top = k * (cell + 2), start // columns * (cell + line)
            sheet.paste(Image.fromarray(picture), (left, top))
            draw.text((left + 2, top + cell), row[k][:24], fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    log.info("%d pictures in %s", len(prompts), file)


@torch.no_grad()
def caption_losses(
    unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, latents: Latents, count: int = 100
) -> list[CaptionLoss]:
    """The gap between right and wrong captions, on drawings in the default style; 400 and more is where shape forms."""
    plain = [
        k
        for k, (drawing, background) in enumerate(zip(latents.drawings, latents.backgrounds, strict=True))
        if drawing.style == DEFAULT_STYLE and background == WHITE
    ]
    picked = np.random.default_rng(0).choice(plain, min(count, len(plain)), replace=False)
    names = [latents.drawings[k].concept.name for k in picked]
    x0 = latents.z[picked]
    alphas_bar = scaled_linear_alphas_bar()
    contexts = [encode_prompts(text, tokenizer, said) for said in (names, names[1:] + names[:1], [""] * len(names))]
    results = []
    for timestep in (400, 600, 800, 900):
        epsilon = torch.randn(x0.shape, generator=torch.Generator().manual_seed(timestep))
        t = torch.full((len(names),), timestep)
        x = q_sample(x0, t, epsilon, alphas_bar)
        losses = [(unet(x, t, context).sample - epsilon).square().mean().item() for context in contexts]
        results.append(CaptionLoss(timestep, *losses))
    return results


def report(checkpoint: Path, run: Path, prompts: list[str], file: Path, seed: int = 0, cfg_scale: float = 5.0) -> None:
    contact_sheet(checkpoint, run, prompts, file, seed, cfg_scale)
    unet, _, text = load_exported(checkpoint)
    for loss in caption_losses(unet, text, load_tokenizer(run), load_latents(run)):
        log.info(
            "t = %d: loss %.4f with the right caption, %.4f with a wrong one, %.4f with none (wrong / right %.2f)",
            loss.timestep,
            loss.right,
            loss.wrong,
            loss.empty,
            loss.wrong / loss.right,
        )


def chosen_prompts(words: list[str], count: int, seed: int) -> list[str]:
    """The fixed prompts of training, then random words of the list, one in four with a style or a background."""
    rng = np.random.default_rng(seed)
    others = [word for word in words if word not in PROMPTS]
    drawn = [str(word) for word in rng.permutation(others)[: max(0, count - len(PROMPTS))]]
    extras = (", 3d style", " on a blue background", ", yellow background")
    return [*PROMPTS, *(word + (extras[k // 4 % 3] if k % 4 == 3 else "") for k, word in enumerate(drawn))][:count]
