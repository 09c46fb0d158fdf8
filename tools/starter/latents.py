"""Stage latents: the pictures as the UNet sees them, computed once.

`latents/z.npy` holds (N, 4, 16, 16) fp16, scaled to about unit deviation; `latents/index.json` which drawing on which
background each is; `latents/vae` the VAE with that scaling folded in. `latents/z-24.npy` and `z-32.npy` are larger
pictures (192 and 256 pixels) in the default style on white, so that the UNet draws one big apple there, not four.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from tools.starter.artwork import SIZE, Drawing, draw, load_artwork
from tools.starter.captions import BACKGROUNDS, DEFAULT_STYLE, WHITE, with_telling_tags
from tools.starter.networks import SCALE

log = logging.getLogger(__name__)

BATCH = 16
CELLS = SIZE // 8  # of a latent, each way
LARGER = (24, 32)  # cells
LIFT_FROM = 0.45  # of the largest deviation, 0-1


@dataclass(frozen=True)
class Latents:
    z: Tensor  # (N, 4, cells, cells) fp32, as the UNet sees them
    drawings: list[Drawing]  # of each latent
    backgrounds: list[str]


def make_latents(
    run: Path, vae_folder: Path, coloured: int, seed: int, device: torch.device, whitened: bool = False
) -> None:
    """Each drawing on white, and on `coloured` other backgrounds.

    `whitened`: the VAE is an exported one, whose latents a UNet knows already, so they stay as they are.
    """
    artwork, drawings = load_artwork(run)
    rng = np.random.default_rng(seed)
    vae = AutoencoderKL.from_pretrained(vae_folder).to(device).eval()
    others = [name for name in BACKGROUNDS if name != WHITE]
    index = [
        (number, background)
        for number in range(len(drawings))
        for background in [WHITE, *(str(name) for name in rng.choice(others, coloured, replace=False))]
    ]
    z, variance = encode(vae, artwork, index)
    z = (z if whitened else whiten(vae, z, variance)) * SCALE
    log.info("%d latents, deviation %s", len(z), z.std((0, 2, 3)).tolist())
    folder = run / "latents"
    folder.mkdir(exist_ok=True)
    vae.save_pretrained(folder / "vae")
    np.save(folder / "z.npy", z.half().numpy())
    (folder / "index.json").write_text(json.dumps(index))


def make_larger_latents(run: Path, device: torch.device) -> None:
    """The default style's drawings on white, drawn larger. Needs what `make_latents` left."""
    _, drawings = load_artwork(run)
    numbers = {d.concept.key: number for number, d in enumerate(drawings) if d.style == DEFAULT_STYLE}
    concepts = [drawings[number].concept for number in numbers.values()]
    vae = AutoencoderKL.from_pretrained(run / "latents" / "vae").to(device).eval()
    for cells in LARGER:
        drawn = list(draw(run, DEFAULT_STYLE, concepts, 8 * cells))
        pictures = np.stack([picture for _, picture in drawn])
        z, _ = encode(vae, pictures, [(k, WHITE) for k in range(len(drawn))])
        np.save(_file(run, cells), (z * SCALE).half().numpy())
        index = [(numbers[concept.key], WHITE) for concept, _ in drawn]
        _file(run, cells).with_suffix(".json").write_text(json.dumps(index))
        log.info("%d latents of %d x %d", len(drawn), cells, cells)


def load_latents(run: Path, cells: int = CELLS) -> Latents:
    _, drawings = load_artwork(run)
    drawings = with_telling_tags(drawings)
    index = load_index(run, cells)
    return Latents(
        z=torch.from_numpy(np.load(_file(run, cells))).float(),
        drawings=[drawings[number] for number, _ in index],
        backgrounds=[background for _, background in index],
    )


def load_index(run: Path, cells: int = CELLS) -> list[tuple[int, str]]:
    """Of each latent: the number of its drawing, and the background."""
    file = run / "latents" / "index.json" if cells == CELLS else _file(run, cells).with_suffix(".json")
    return [(number, background) for number, background in json.loads(file.read_text())]


def larger_exist(run: Path) -> bool:
    return all(_file(run, cells).exists() for cells in LARGER)


def _file(run: Path, cells: int) -> Path:
    return run / "latents" / ("z.npy" if cells == CELLS else f"z-{cells}.npy")


@torch.no_grad()
def whiten(vae: AutoencoderKL, z: Tensor, variance: Tensor) -> Tensor:
    """Latents whose channels, times SCALE, have mean 0, no correlation, mostly deviation 1. Changes the VAE to fit.

    z: (N, 4, H/8, W/8), unscaled; variance: (4,), how unsure the encoder is of them, on average.
    z' = W (z - mu); W and mu are folded into the last convolution of the encoder and undone in the first of the
    decoder, so the pictures stay the same. Without it the noise of diffusion hides what lies in the directions of
    small variance. The smallest, however, holds little but the texture of edges, which is hard to learn: lifted to
    deviation 1 it took 55 % of the loss. So no axis is lifted further than one of LIFT_FROM times the largest would be.
    """
    flat = z.double().transpose(0, 1).flatten(1)  # (4, places)
    mu = flat.mean(1)
    variances, axes = torch.linalg.eigh(torch.cov(flat))
    deviations = variances.sqrt()
    forward = torch.diag(1 / deviations.clamp(min=LIFT_FROM * deviations.max())) @ axes.T / SCALE  # W, (4, 4)
    back = torch.linalg.inv(forward)
    quant, post_quant = vae.quant_conv, vae.post_quant_conv  # both 1 x 1
    encode, decode = quant.weight[:4, :, 0, 0].double().cpu(), post_quant.weight[:, :, 0, 0].double().cpu()
    offset = quant.bias[:4].double().cpu() - mu
    quant.weight[:4, :, 0, 0] = (forward @ encode).to(quant.weight)
    quant.bias[:4] = (forward @ offset).to(quant.bias)
    post_quant.bias += (decode @ mu).to(post_quant.bias)
    post_quant.weight[:, :, 0, 0] = (decode @ back).to(post_quant.weight)
    # A rotated variance is no convolution of the old log variances; they are tiny, so their mean will do.
    quant.weight[4:] = 0
    quant.bias[4:] = (forward.square() @ variance.double()).log().to(quant.bias)
    return torch.einsum("ij,njhw->nihw", forward, z.double() - mu.view(1, 4, 1, 1)).float()


def composite(picture: NDArray[np.uint8], background: str) -> NDArray[np.float32]:
    """RGBA (H, W, 4) on a plain background: RGB (H, W, 3) in -1..1."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    rgb = picture[..., :3] * alpha + np.array(BACKGROUNDS[background], np.float32) * (1 - alpha)
    return np.asarray(rgb / 127.5 - 1, np.float32)


@torch.no_grad()
def encode(vae: AutoencoderKL, artwork: NDArray[np.uint8], index: Sequence[tuple[int, str]]) -> tuple[Tensor, Tensor]:
    """(N, 4, cells, cells), the most likely latents, and (4,), their mean variance; unscaled, on the CPU."""
    means, variance = [], torch.zeros(4)
    for start in range(0, len(index), BATCH):
        pictures = [composite(artwork[number], background) for number, background in index[start : start + BATCH]]
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(vae.device)
        posterior = vae.encode(x).latent_dist
        means.append(posterior.mean.cpu())
        variance += posterior.var.sum((0, 2, 3)).cpu() / posterior.var[0, 0].numel()
    return torch.cat(means), variance / len(index)
