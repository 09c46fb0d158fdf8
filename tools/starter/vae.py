"""Stage vae: a small autoencoder in SD1's layout, f = 8 and 4 channels, for flat, colourful pictures.

Trained on crops first, then on whole pictures. The run lives in `vae/`: `state.pt`, the averaged weights, `log.txt`.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from modules.training.objective import EMA
from tools.starter.artwork import SIZE, load_artwork
from tools.starter.captions import WHITE
from tools.starter.latents import composite
from tools.starter.networks import mixed_precision
from tools.starter.norms import use_fast_norms
from tools.starter.runstate import Plan, generators, keep, resumed

log = logging.getLogger(__name__)

HELD_OUT_EVERY = 97  # each 97th picture is for validation only


@dataclass(frozen=True)
class Phase:
    crop: int  # pixels
    batch_size: int
    until: float  # part of the time, 0-1


PHASES = (Phase(32, 24, 0.4), Phase(64, 8, 0.85), Phase(SIZE, 4, 1.0))


@dataclass(frozen=True)
class VaeTraining:
    plan: Plan
    seed: int
    batch_factor: int = 1  # times the batch sizes of PHASES
    colour_probe: float = 0.5  # weight of the linear probe below
    kl: float = 5e-4
    swapped_colours: float = 0.2  # part of the pictures with permuted colour channels, 0-1
    save_every_s: float = 180


def train_vae(run: Path, training: VaeTraining, vae: AutoencoderKL, device: torch.device) -> None:
    """Goes on where `state.pt` ends; `vae` is where a new run starts.

    A linear probe must predict the colours, averaged over 8 x 8 pixels, from the latent mean. Without it GroupNorm
    with few channels a group forgets red and green for a long time.
    """
    folder = run / "vae"
    folder.mkdir(exist_ok=True)
    artwork, _ = load_artwork(run)
    held_out = np.arange(0, len(artwork), HELD_OUT_EVERY)[:16]
    taught = np.setdiff1d(np.arange(len(artwork)), held_out)
    checked = as_images([composite(artwork[k], WHITE) for k in held_out], device)

    torch.manual_seed(training.seed)
    vae.to(device, memory_format=torch.channels_last).train()
    use_fast_norms(vae, device)
    probe = nn.Conv2d(4, 3, 1).to(device)
    parameters = [*vae.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=training.plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    mean = EMA(vae, 0.995)
    parts = {"vae": vae, "mean": mean.module, "probe": probe, "optimizer": optimizer}
    counters = resumed(folder, parts, step=0, elapsed_s=0.0, updates=0)
    step, elapsed_s, mean.updates = counters["step"], counters["elapsed_s"], counters["updates"]

    def save() -> None:
        keep(folder, parts, step=step, elapsed_s=elapsed_s, updates=mean.updates)
        mean.module.save_pretrained(folder)

    last = {"line": elapsed_s, "save": elapsed_s}
    now = time.monotonic()
    while not training.plan.done(elapsed_s):
        progress = elapsed_s / (training.plan.minutes * 60)
        phase = next(phase for phase in PHASES if progress < phase.until)
        rng, generator = generators(training.seed, step)
        picked = rng.choice(taught, min(len(taught), phase.batch_size * training.batch_factor), replace=False)
        pictures = [_augmented(artwork[k], phase.crop, training.swapped_colours, rng) for k in picked]
        x = as_images(pictures, device)
        for group in optimizer.param_groups:
            group["lr"] = training.plan.rate * training.plan.factor(step, elapsed_s)
        with mixed_precision(device):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        loss = picture_loss(x, y) + training.kl * posterior.kl().mean() / posterior.mean[0].numel()
        loss = loss + training.colour_probe * max(0.1, 1 - 2 * progress) * probe_loss(probe, posterior.mean, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean.update(vae)
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if elapsed_s - last["line"] > 30:
            last["line"] = elapsed_s
            decibel = peak_signal_to_noise(reconstruct(mean.module, checked), checked)
            line = f"{elapsed_s / 60:.1f} min, step {step}, crop {phase.crop}, loss {loss.item():.4f}"
            line += f", held-out PSNR {decibel:.2f} dB"
            log.info(line)
            with open(folder / "log.txt", "a") as stream:
                stream.write(line + "\n")
        if elapsed_s - last["save"] > training.save_every_s:
            last["save"] = elapsed_s
            save()
    save()
    log.info("held-out PSNR %.2f dB", peak_signal_to_noise(reconstruct(mean.module, checked), checked))
    _save_reconstructions(mean.module, checked, folder / "reconstructions.png")


def picture_loss(x: Tensor, y: Tensor) -> Tensor:
    """How far y is from x, (B, 3, H, W) in -1..1: pixels, edges, and colours at coarser scales."""
    loss = (x - y).abs().mean() + 0.5 * (x - y).square().mean()
    d = x - y
    loss = loss + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    for size in (2, 4, 8):
        loss = loss + 0.5 * F.avg_pool2d(d, size).abs().mean()
    coarse = F.avg_pool2d(d, 4)
    return loss + 0.5 * (coarse - coarse.roll(1, dims=1)).abs().mean()  # differences between colour channels


def probe_loss(probe: nn.Conv2d, z: Tensor, x: Tensor) -> Tensor:
    """z: (B, 4, H/8, W/8), x: (B, 3, H, W)."""
    d = probe(z.float()) - F.avg_pool2d(x, 8)
    return d.abs().mean() + 2 * (d - d.roll(1, dims=1)).abs().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1, there and back without noise."""
    return vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)


def peak_signal_to_noise(y: Tensor, x: Tensor) -> float:
    """dB, of pictures y that should be x: (B, 3, H, W) in -1..1."""
    return -10 * math.log10((y.clamp(-1, 1) - x).div(2).square().mean().item())


def _augmented(picture: NDArray[np.uint8], crop: int, swapped: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A crop (crop, crop, 3) in -1..1, on white or any colour, perhaps mirrored, perhaps with its colours swapped."""
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    for _ in range(4):  # tries, for a crop that is not nearly empty
        top, left = rng.integers(0, SIZE + 1 - crop, 2)
        part = picture[top : top + crop, left : left + crop]
        if part[..., 3].mean() > 60:
            break
    alpha = part[..., 3:].astype(np.float32) / 255
    background = np.ones(3, np.float32) if rng.random() < 0.5 else rng.random(3, np.float32)
    rgb = part[..., :3].astype(np.float32) / 255 * alpha + background * (1 - alpha)
    if rng.random() < swapped:
        rgb = rgb[..., rng.permutation(3)]
    return np.asarray(rgb * 2 - 1, np.float32)


def as_images(pictures: list[NDArray[np.float32]], device: torch.device) -> Tensor:
    """(B, 3, H, W)"""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device)
    return x.contiguous(memory_format=torch.channels_last)


def _save_reconstructions(vae: AutoencoderKL, x: Tensor, file: Path) -> None:
    y = reconstruct(vae, x)
    rows = [torch.cat(list(pictures), dim=-1) for pictures in (x, y)]  # each (3, H, B*W)
    sheet = torch.cat(rows, dim=-2).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(sheet).save(file)
