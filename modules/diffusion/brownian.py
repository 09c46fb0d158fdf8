"""Brownian motion along the noise levels, for samplers that solve a stochastic equation: where they stop in between
does not change the path. Gives the numbers of torchsde's BrownianTree (Li et al., 2020, "Scalable gradients for
stochastic differential equations"), which k-diffusion uses, without its caches and Lévy areas."""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from modules.diffusion.noise import Source, stream

Level = Tensor | float  # sigma
BetweenLevels = Callable[[Level, Level], Tensor]  # sigma, sigma_next -> (B, C, H, W) of unit variance

DIGITS = 6  # places that tell two levels apart
POOL = 24  # words of numpy's SeedSequence
KEPT = 4  # known points of the path


class BrownianPath:
    """W(t) for low ≤ t ≤ high, from 0 at `low`; found by halving the interval until t is one of the halves' ends."""

    def __init__(
        self,
        shape: tuple[int, ...],
        seed: int,
        low: float,
        high: float,
        source: Source = "CPU",
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.seed, self.source, self.device = shape, seed % 2**64, source, device
        self.low, self.high = round(low, DIGITS), round(high, DIGITS)
        end_seed = np.random.SeedSequence(self.seed, pool_size=POOL).generate_state(3)[0]
        self._end = self._normal(int(end_seed)) * sqrt(high - low)
        self._known: dict[float, Tensor] = {}

    def __call__(self, t: float) -> Tensor:
        t = min(max(round(t, DIGITS), self.low), self.high)
        if t not in self._known:
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[t] = self._at(t)
        return self._known[t]

    def _at(self, t: float) -> Tensor:
        start, end = self.low, self.high
        at_start, increment = torch.zeros_like(self._end), self._end  # W(start), W(end) - W(start)
        key = depth = 0  # which interval of which level
        while start < t < end:
            middle = round((start + end) / 2, DIGITS)
            seeds = np.random.SeedSequence(self.seed, spawn_key=(key, depth), pool_size=POOL).generate_state(4)
            left, right, whole = middle - start, end - middle, end - start
            bridge = increment * (left / whole) + self._normal(int(seeds[0])) * sqrt(left * right / whole)
            depth += 1
            if t < middle:
                end, increment, key = middle, bridge, 2 * key
            else:
                start, at_start, increment, key = middle, at_start + bridge, increment - bridge, 2 * key + 1
        return at_start if t <= start else at_start + increment

    def _normal(self, seed: int) -> Tensor:
        return stream(seed, self.source, self.device)(self.shape).to(self.device)


def brownian_noise(
    shape: tuple[int, ...],
    seeds: Sequence[int],
    sigmas: Tensor,
    source: Source = "CPU",
    device: torch.device | str = "cpu",
) -> BetweenLevels:
    """One path for each of the images, over all of `sigmas` but the 0."""
    low, high = float(sigmas[sigmas > 0].min()), float(sigmas.max())
    paths = [BrownianPath(shape, seed, low, high, source, device) for seed in seeds]

    def between(sigma: Level, sigma_next: Level) -> Tensor:
        a, b = float(sigma), float(sigma_next)
        return torch.stack([path(b) - path(a) for path in paths]) / sqrt(abs(b - a))

    return between
