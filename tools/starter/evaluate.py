"""Stage sheet: look at what the starter draws, and measure whether it listens.

Makes a contact sheet with captions, and prints how well the VAE gives pictures back, and the loss with the right
caption, with another drawing's caption and with none: a network that ignores its prompt has the same loss in all three.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.objective import q_sample, scaled_linear_alphas_bar
from tools.starter.captions import DEFAULT_STYLE, WHITE
from tools.starter.drawing import draw_all, load
from tools.starter.export import load_exported
from tools.starter.fidelity import examples, fidelity
from tools.starter.judge import PROMPTS_FILE, load_prompts
from tools.starter.latents import Latents, load_latents
from tools.starter.sampling import encode_prompts
from tools.starter.text import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionLoss:
    """Mean squared error of the predicted noise at one timestep."""

    timestep: int
    right: float
    wrong: float
    empty: float


def prompts_of(checkpoint: Path, most: int = 60) -> list[str]:
    """Of prompts.txt those that it was taught, by the list of words beside it; all of one that was taught none."""
    words = set(checkpoint.with_suffix(".words.txt").read_text("utf-8").splitlines())
    known = load_prompts(PROMPTS_FILE)
    return ([prompt for prompt, concept in known if concept in words] or [prompt for prompt, _ in known])[:most]


def contact_sheet(checkpoint: Path, prompts: Sequence[str], file: Path, seed: int, cfg_scale: float) -> None:
    """One picture of each prompt, drawn as the product draws it, with the prompt below; .webp or .png."""
    columns, cell, line = 10, 112, 14  # pixels
    rows = -(-len(prompts) // columns)
    pictures = draw_all(load(checkpoint), prompts, [seed] * len(prompts), cfg_scale=cfg_scale)
    sheet = Image.new("RGB", (columns * (cell + 4), rows * (cell + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, picture in enumerate(pictures):
        left, top = k % columns * (cell + 4), k // columns * (cell + line)
        sheet.paste(Image.fromarray(picture).resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 2, top + cell), prompts[k][:21], fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=82)
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


def report(checkpoint: Path, run: Path, prompts: Sequence[str], file: Path, seed: int = 0, cfg: float = 5.0) -> None:
    contact_sheet(checkpoint, prompts, file, seed, cfg)
    unet, vae, text = load_exported(checkpoint)
    for kind, numbers in examples(run, each=100).items():
        log.info("VAE, %s: %.2f dB", kind, fidelity(run, vae, numbers, vae.device))
    for loss in caption_losses(unet, text, load_tokenizer(run), load_latents(run)):
        log.info(
            "t = %d: loss %.4f with the right caption, %.4f with a wrong one, %.4f with none (wrong / right %.2f)",
            loss.timestep,
            loss.right,
            loss.wrong,
            loss.empty,
            loss.wrong / loss.right,
        )
