"""Pictures from the networks in training, with the plainest sampler: DDIM with classifier-free guidance.

The product has better samplers; this one shows how training goes and is the reference for the export.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.objective import scaled_linear_alphas_bar
from tools.starter.networks import SCALE
from tools.starter.text import load_tokenizer

PROMPTS = (
    "red apple",
    "cat face",
    "pizza",
    "sailboat",
    "house with garden",
    "dog face",
    "rose",
    "rocket",
    "hamburger",
    "owl",
    "volcano",
    "airplane",
    "strawberry",
    "castle",
    "guitar",
    "christmas tree",
    "a red apple on a blue background",
    "cat face, 3d style",
    "strawberry, 3d style",
    "house, 3d style",
    "a picture of a tiger",
    "elephant",
    "bicycle",
    "birthday cake, pink background",
)


def encode_prompts(text: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """(B, 77, hidden)"""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    return text(tokens.input_ids.to(text.device)).last_hidden_state


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    steps: int = 20,
    cfg_scale: float = 5.0,
    seed: int = 0,
    encode: Callable[[Sequence[str]], Tensor] | None = None,
) -> Tensor:
    """(B, 4, 16, 16), as the UNet sees them: equation 12 of Song et al. (2021), "DDIM", with eta = 0.

    Noise of the k-th picture is that of seed + k. `encode`: another way from prompts to contexts.
    """
    device = unet.device
    noise = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + k)) for k in range(len(prompts))]
    x = torch.stack(noise).to(device)
    asked = ["" for _ in prompts] + list(prompts)
    context = encode(asked) if encode else encode_prompts(text, tokenizer, asked)
    alphas_bar = scaled_linear_alphas_bar().to(device)
    timesteps = np.arange(steps)[::-1] * (1000 // steps) + 1  # "leading" with offset 1, as SD1's own config has it
    for t in timesteps:
        a = alphas_bar[t]
        a_next = alphas_bar[max(t - 1000 // steps, 0)]
        batch_t = torch.full((2 * len(prompts),), int(t), device=device)
        uncond, cond = unet(torch.cat([x, x]), batch_t, context).sample.float().chunk(2)
        epsilon = uncond + cfg_scale * (cond - uncond)
        x0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
        x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * epsilon
    return x


@torch.no_grad()
def decode(vae: AutoencoderKL, z: Tensor) -> NDArray[np.uint8]:
    """(B, H, W, 3) pictures of latents (B, 4, H/8, W/8) as the UNet sees them."""
    parts = [vae.decode(z[k : k + 8].to(vae.device) / SCALE).sample for k in range(0, len(z), 8)]
    return torch.cat(parts).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def save_sheet(
    run: Path,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    prompts: Sequence[str],
    file: Path,
    seed: int = 0,
    cfg_scale: float = 5.0,
    columns: int = 12,
) -> None:
    vae = AutoencoderKL.from_pretrained(run / "latents" / "vae").to(unet.device).eval()
    z = sample_latents(unet, text, load_tokenizer(run), prompts, seed=seed, cfg_scale=cfg_scale)
    tile(decode(vae, z), columns).save(file)


def tile(pictures: NDArray[np.uint8], columns: int) -> Image.Image:
    """One picture of many, (B, H, W, 3), with thin lines between."""
    _, height, width, _ = pictures.shape
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "gray")
    for k, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (k % columns * (width + 2), k // columns * (height + 2)))
    return sheet
