"""A small network that names the concept of a picture, trained on the artwork in all styles but one.

The style left out tells how far its word can be trusted on pictures that it has not seen. It knows nothing of the
starter: its pictures come from the packages, on any background, moved, blurred and recoloured a little.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.starter.artwork import load_artwork, make_artwork
from tools.starter.runstate import Plan, generators, load_state, save_state
from tools.starter.sources import STYLES

log = logging.getLogger(__name__)

HELD_OUT = "twemoji"
SEEN = 64  # pixels, each way
COLOUR_CELLS, EDGE_CELLS, DIRECTIONS = 8, 8, 9
HIDDEN = 1024
LOOKS = ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))  # pixels down and right: its features notice a shift by a few


@dataclass(frozen=True)
class Judge:
    network: nn.Module
    names: list[str]  # of the concepts, in the order of the scores
    held_out: tuple[float, float]  # top-1 and top-5 on the style left out, 0-1


class Features(nn.Module):
    """(B, 3, 64, 64) in -1..1 -> (B, features): where which colours are, and where which edges run. Nothing to learn.

    Edges are histograms of gradient directions, after Dalal and Triggs (2005): forty times cheaper to train on than a
    convolutional network of the same judgement, which counts on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        r, g, b = x[:, 0], x[:, 1], x[:, 2]
        opponent = torch.stack([(r + g + b) / 3, r - g, b - (r + g) / 2], 1)
        colours = F.avg_pool2d(opponent, SEEN // COLOUR_CELLS).flatten(1)
        dx = F.pad(opponent[..., 2:] - opponent[..., :-2], (1, 1))  # (B, 3, 64, 64)
        dy = F.pad(opponent[..., 2:, :] - opponent[..., :-2, :], (0, 0, 1, 1))
        size, which = (dx.square() + dy.square()).max(1, keepdim=True)  # the colour with the steepest edge
        dx, dy = dx.gather(1, which), dy.gather(1, which)
        angle = torch.atan2(dy, dx) * (DIRECTIONS / torch.pi)  # an edge has no sign: modulo half a turn
        bins = torch.arange(DIRECTIONS).view(1, -1, 1, 1)
        away = (angle - bins + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2
        share = (1 - away.abs()).clamp(min=0) * (size + 1e-8).sqrt().sqrt()
        cell = SEEN // EDGE_CELLS
        edges = F.avg_pool2d(F.pad(share, (2, 2, 2, 2)), cell + 4, stride=cell)
        edges = edges / (edges.square().sum(1, keepdim=True) + 0.02).sqrt()
        return torch.cat([colours, edges.flatten(1)], 1)


def make_network(count: int) -> nn.Module:
    """(B, 3, 64, 64) in -1..1 -> (B, count) scores."""
    features = 3 * COLOUR_CELLS**2 + DIRECTIONS * EDGE_CELLS**2
    hidden = [nn.Linear(features, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(Features(), nn.BatchNorm1d(features), *hidden, nn.Linear(HIDDEN, count))


def train_judge(folder: Path, minutes: float, seed: int = 0, batch_size: int = 128) -> Judge:
    """Trained once and kept in `folder`; resumes after a kill, goes on with more minutes."""
    if not (folder / "artwork.npy").exists():
        make_artwork(folder, list(STYLES), "all")
    artwork, drawings = load_artwork(folder)
    names = list(dict.fromkeys(drawing.concept.name for drawing in drawings))
    label = torch.tensor([names.index(drawing.concept.name) for drawing in drawings])
    taught = np.array([k for k, drawing in enumerate(drawings) if drawing.style != HELD_OUT])
    small = _small(artwork)  # (N, 64, 64, 4) uint8

    torch.manual_seed(seed)
    network = make_network(len(names)).train()
    plan = Plan(minutes, rate=2e-3, tail=0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=0.05)
    step, elapsed_s = 0, 0.0
    state = load_state(folder / "judge.pt")
    if state:
        step, elapsed_s = state["step"], state["elapsed_s"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    def save() -> None:
        counters = {"step": step, "elapsed_s": elapsed_s}
        save_state(
            {**counters, "network": network.state_dict(), "optimizer": optimizer.state_dict()}, folder / "judge.pt"
        )

    saved_s, now = elapsed_s, time.monotonic()
    while not plan.done(elapsed_s):
        rng, generator = generators(seed, step)
        picked = rng.choice(taught, batch_size, replace=False)
        x = _disturbed(torch.from_numpy(small[picked]), rng, generator)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * plan.factor(step, elapsed_s)
        scores = network(x)
        loss = F.cross_entropy(scores, label[picked], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if step % 100 == 0:
            right = (scores.argmax(1) == label[picked]).float().mean().item()
            log.info("%.1f min, step %d, loss %.3f, right %.2f", elapsed_s / 60, step, loss.item(), right)
        if elapsed_s - saved_s > 120:
            saved_s = elapsed_s
            save()
    save()
    network.eval()
    unseen = [k for k, drawing in enumerate(drawings) if drawing.style == HELD_OUT]
    on_white = _on(torch.from_numpy(small[unseen]), torch.ones(len(unseen), 3))
    return Judge(network, names, hits(network, on_white, label[unseen]))


def hits(network: nn.Module, x: Tensor, label: Tensor) -> tuple[float, float]:
    """Part of the pictures that is named right, first and among the first five."""
    best = rank(network, x)[:, :5]
    right = best == label[:, None]
    return right[:, 0].float().mean().item(), right.any(1).float().mean().item()


@torch.no_grad()
def rank(network: nn.Module, x: Tensor) -> Tensor:
    """(B, 3, 64, 64) -> (B, concepts), the likeliest first, after looks at the picture from a few places."""
    return torch.cat([_looked_at(network, part).argsort(1, descending=True) for part in x.split(256)])


def _looked_at(network: nn.Module, x: Tensor) -> Tensor:
    """(B, concepts), mean log probability over `LOOKS`; what leaves the picture at a side comes in at the other."""
    looks = [F.log_softmax(network(x.roll(look, dims=(2, 3))), dim=1) for look in LOOKS]
    return torch.stack(looks).mean(0)


def as_seen(pictures: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, 64, 64) in -1..1"""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(x, size=(SEEN, SEEN), mode="bilinear", antialias=True)


def _small(artwork: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 64, 64, 4), colours multiplied with alpha, so that they can be set on anything."""
    parts = []
    for start in range(0, len(artwork), 256):
        rgba = artwork[start : start + 256].astype(np.uint16)
        rgba[..., :3] = rgba[..., :3] * rgba[..., 3:] // 255
        n, h, w, _ = rgba.shape
        parts.append(rgba.reshape(n, h // 2, 2, w // 2, 2, 4).mean((2, 4)).astype(np.uint8))
    return np.concatenate(parts)


def _on(picture: Tensor, colour: Tensor) -> Tensor:
    """(B, 64, 64, 4) and (B, 3) in 0..1 -> (B, 3, 64, 64) in -1..1"""
    rgba = picture.permute(0, 3, 1, 2).float() / 255
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * colour[:, :, None, None]) * 2 - 1


def _disturbed(picture: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """(B, 64, 64, 4) -> (B, 3, 64, 64): white or a colour behind, moved, scaled, turned, blurred, recoloured, noisy."""

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    count = len(picture)
    rgba = picture.permute(0, 3, 1, 2).float() / 255
    angle, scale = (random(count) - 0.5) * 0.5, 0.85 + 0.4 * random(count)
    shear = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * scale[:, None, None]
    affine = torch.cat([shear, (random(count, 2, 1) - 0.5) * 0.3], dim=2)
    rgba = F.grid_sample(rgba, F.affine_grid(affine, list(rgba.shape), align_corners=False), align_corners=False)
    colour = torch.where(random(count, 1) < 0.5, torch.ones(count, 3), random(count, 3))
    x = rgba[:, :3] + (1 - rgba[:, 3:]) * colour[:, :, None, None]
    gain, lift = 0.8 + 0.4 * random(count, 3, 1, 1), (random(count, 3, 1, 1) - 0.5) * 0.2
    x = ((x - 0.5) * gain + 0.5 + lift).clamp(0, 1)
    if rng.random() < 0.5:
        size = int(rng.integers(20, SEEN))
        x = F.interpolate(F.interpolate(x, size=size, mode="bilinear", antialias=True), size=SEEN, mode="bilinear")
    return x * 2 - 1 + 0.05 * random(1) * torch.randn(x.shape, generator=generator)


def indices(judge: Judge, names: Sequence[str]) -> Tensor:
    return torch.tensor([judge.names.index(name) for name in names])
