"""A large picture through a VAE tile by tile: tiles overlap and are blended, and all of them are normalised by the
statistics of the whole picture, so that no tile has a brightness of its own. Knows group norms, and no device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

OVERLAP = 4  # neighbours share at least a part of a tile: one of so many

Run = Callable[[Tensor], Tensor]  # (1, C, h, w) -> (1, D, …)


def tiled(network: nn.Module, run: Run, given: Tensor, tile: int, taken: int, made: int) -> Tensor:
    """What `run`, which calls `network`, makes of `given` (1, C, h, w), never of more than `tile` cells in each
    direction. `taken`, `made`: elements of `given` and of the result a cell, in each direction. Float32, on the device
    of `given`."""
    height, width = given.shape[2] // taken, given.shape[3] // taken
    result = weights = torch.zeros(0)

    def of(top: int, left: int, rows: int, columns: int) -> Tensor:
        return run(given[:, :, top * taken : (top + rows) * taken, left * taken : (left + columns) * taken])

    with norms_of_the_whole(network) as norms:
        for top, rows in shares(height, tile):
            for left, columns in shares(width, tile):
                of(top, left, rows, columns)
        norms.settle()
        for top in starts(height, tile):
            for left in starts(width, tile):
                part = of(top, left, tile, tile).float()
                if not len(result):
                    result = part.new_zeros(1, part.shape[1], height * made, width * made)
                    weights = part.new_zeros(1, 1, height * made, width * made)
                rows_weight = ramp(part.shape[2], top > 0, top + tile < height, part.device)
                columns_weight = ramp(part.shape[3], left > 0, left + tile < width, part.device)
                weight = rows_weight[:, None] * columns_weight
                down, right = slice(top * made, (top + tile) * made), slice(left * made, (left + tile) * made)
                result[:, :, down, right] += part * weight
                weights[:, :, down, right] += weight
    return result / weights


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin, evenly, so that neighbours overlap and the last one ends at the end."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - tile // OVERLAP)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def shares(length: int, tile: int) -> list[tuple[int, int]]:
    """(start, length) of equal parts that do not overlap."""
    count = -(-length // tile)
    ends = [round(i * length / count) for i in range(count + 1)]
    return [(start, end - start) for start, end in zip(ends, ends[1:], strict=False)]


def ramp(length: int, before: bool, after: bool, device: torch.device) -> Tensor:
    """(length,): 1, falling towards the sides on which there is a neighbour."""
    weights = torch.ones(length, device=device)
    width = length // OVERLAP
    rising = (torch.arange(width, device=device) + 0.5) / width
    if before:
        weights[:width] = rising
    if after:
        weights[-width:] *= rising.flip(0)
    return weights


@contextmanager
def norms_of_the_whole(network: nn.Module) -> Iterator["_Norms"]:
    """Within, the network's group norms collect the statistics of all that goes through them; from `settle` on they
    normalise by these."""
    norms = _Norms({norm: _Statistics() for norm in network.modules() if isinstance(norm, nn.GroupNorm)})
    try:
        for norm, statistics in norms.seen.items():
            norm.forward = partial(_collecting, norm, statistics)  # type: ignore[method-assign]
        yield norms
    finally:
        for norm in norms.seen:
            norm.__dict__.pop("forward", None)


@dataclass
class _Statistics:
    """Of the groups of one norm."""

    count: int = 0
    mean: Tensor | float = 0.0  # (G,), sums until they are asked for
    square: Tensor | float = 0.0


@dataclass(frozen=True)
class _Norms:
    seen: dict[nn.GroupNorm, _Statistics]

    def settle(self) -> None:
        for norm, statistics in self.seen.items():
            if statistics.count:
                mean = torch.as_tensor(statistics.mean) / statistics.count
                variance = torch.as_tensor(statistics.square) / statistics.count - mean.square()
                scale = (variance.clamp(min=0) + norm.eps).rsqrt()
                each = norm.num_channels // norm.num_groups
                scale, mean = scale.repeat_interleave(each), mean.repeat_interleave(each)
                if norm.affine:
                    scale = scale * norm.weight.float()
                shift = (norm.bias.float() if norm.affine else 0) - mean * scale
                norm.forward = partial(_normalised, scale, shift)  # type: ignore[method-assign]


def _collecting(norm: nn.GroupNorm, statistics: _Statistics, x: Tensor) -> Tensor:
    batch, channels, count = x.shape[0], x.shape[1], x[0, 0].numel()
    normal: Tensor
    normal, mean, rstd = torch.native_group_norm(
        x.contiguous(), norm.weight, norm.bias, batch, channels, count, norm.num_groups, norm.eps
    )
    mean, variance = mean[0].float(), rstd[0].float() ** -2 - norm.eps
    statistics.count += count
    statistics.mean = statistics.mean + mean * count
    statistics.square = statistics.square + (variance + mean.square()) * count
    return normal


def _normalised(scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    sides = (1, -1, *[1] * (x.ndim - 2))
    scale, shift = scale.view(sides), shift.view(sides)
    if x.dtype is torch.bfloat16:  # its eight bits are too few for the factors
        return (x * scale + shift).to(x.dtype)
    return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
