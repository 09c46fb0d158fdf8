"""Noise of one batch: every image draws from its own stream of random numbers, so that a picture depends on its seed
and not on its neighbours. Knows nothing of samplers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

Source = Literal["CPU", "GPU", "NV"]
Stream = Callable[[tuple[int, ...]], Tensor]  # shape -> standard normal numbers, new ones at every call


@dataclass(frozen=True)
class Variation:
    """Another picture's noise mixed into that of this one."""

    seeds: tuple[int, ...]  # one an image
    strength: float  # 0–1


class ImageNoise:
    """Noise for the images of one batch. `first()` is what the picture starts from, `next()` what samplers add
    later."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        seeds: Sequence[int],
        source: Source = "CPU",
        device: torch.device | str = "cpu",
        variation: Variation | None = None,
        resize_from: tuple[int, int] | None = None,
        later_seed_delta: int = 0,
    ) -> None:
        """`shape` (C, H, W) of one latent; `resize_from` (H, W) in latent cells: the picture whose noise is to be kept,
        at its centre; `later_seed_delta` (ENSD): added to the seeds of all noise but the first."""
        self.shape, self.seeds, self.source, self.device = shape, tuple(seeds), source, device
        self.variation = variation if variation and variation.strength else None
        self.resize_from = resize_from
        self.later_seed_delta = later_seed_delta
        self._streams = [self._stream(seed) for seed in self.seeds]

    def first(self) -> Tensor:
        """(B, C, H, W)."""
        images = torch.stack([self._first(i) for i in range(len(self.seeds))])
        if self.later_seed_delta:
            self._streams = [self._stream(seed + self.later_seed_delta) for seed in self.seeds]
        return images.to(self.device)

    def next(self) -> Tensor:
        """(B, C, H, W)."""
        return torch.stack([stream(self.shape) for stream in self._streams]).to(self.device)

    def _first(self, i: int) -> Tensor:
        seed = self.seeds[i]
        shape = (self.shape[0], *self.resize_from) if self.resize_from else self.shape
        resized = shape != self.shape
        noise = self._stream(seed)(shape) if resized else self._streams[i](shape)
        if self.variation:
            noise = slerp(noise, self._stream(self.variation.seeds[i])(shape), self.variation.strength)
        return paste(noise, self._streams[i](self.shape)) if resized else noise

    def _stream(self, seed: int) -> Stream:
        return stream(seed, self.source, self.device)


def stream(seed: int, source: Source, device: torch.device | str = "cpu") -> Stream:
    """The numbers of one seed: torch's on the CPU, torch's on the device, or those that an Nvidia GPU gives,
    anywhere."""
    if source == "NV":
        return _philox_stream(seed)
    where = device if source == "GPU" else "cpu"
    generator = torch.Generator(where).manual_seed(seed % 2**64)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=where)

    return draw


def slerp(low: Tensor, high: Tensor, val: float) -> Tensor:
    """Between two noises of equal shape (C, H, W), each column of each channel on its own great circle; nearly parallel
    ones are mixed in a straight line."""
    dot = (normalize(low, dim=1) * normalize(high, dim=1)).sum(1)
    if dot.mean() > 0.9995:
        return low * (1 - val) + high * val
    omega = dot.acos()
    weight_low, weight_high = ((1 - val) * omega).sin() / omega.sin(), (val * omega).sin() / omega.sin()
    return weight_low.unsqueeze(1) * low + weight_high.unsqueeze(1) * high


def paste(noise: Tensor, onto: Tensor) -> Tensor:
    """The noise of one size in the centre of another, cut where it is larger; both (C, H, W)."""
    result = onto.clone()
    height, width = (min(a, b) for a, b in zip(noise.shape[1:], onto.shape[1:], strict=True))
    y, x = ((onto.shape[i] - noise.shape[i]) // 2 for i in (1, 2))
    target = result[:, max(y, 0) : max(y, 0) + height, max(x, 0) : max(x, 0) + width]
    target.copy_(noise[:, max(-y, 0) : max(-y, 0) + height, max(-x, 0) : max(-x, 0) + width])
    return result


def _philox_stream(seed: int) -> Stream:
    """torch.randn of a CUDA device: call n takes counter n, element i has its own sequence i."""
    calls = 0

    def draw(shape: tuple[int, ...]) -> Tensor:
        nonlocal calls
        size = int(np.prod(shape))
        counter = np.zeros((4, size), dtype=np.uint32)
        counter[0] = calls
        counter[2] = np.arange(size, dtype=np.uint32)
        calls += 1
        words = philox4x32(counter, seed)
        return torch.from_numpy(_box_muller(words[0], words[1]).reshape(shape))

    return draw


def philox4x32(counter: NDArray[np.uint32], seed: int, rounds: int = 10) -> NDArray[np.uint32]:
    """Philox 4x32 of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3". counter: (4, n) -> (4, n)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(rounds):
        p0, p1 = c0.astype(np.uint64) * 0xD2511F53, c2.astype(np.uint64) * 0xCD9E8D57
        low0, high0 = p0.astype(np.uint32), (p0 >> 32).astype(np.uint32)
        low1, high1 = p1.astype(np.uint32), (p1 >> 32).astype(np.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint32(k0), low1, high0 ^ c3 ^ np.uint32(k1), low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _box_muller(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Two words -> one normal number each pair, as cuRAND scales them: both halves of a cell away from 0."""
    scale = np.float32(2.0**-32)
    u = x * scale + scale / 2
    v = y * (scale * np.float32(2 * np.pi)) + scale * np.float32(np.pi)
    normal: NDArray[np.float32] = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
    return normal.astype(np.float32)
