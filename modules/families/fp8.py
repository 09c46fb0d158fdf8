"""Weights kept in 8 bits: a linear layer or a convolution whose weight is float8 in memory and becomes the dtype of its
input for the time of its own forward. Half the memory of fp16, for a little time at every call.

Each output has a scale of its own, a power of two, so that the 4 bits of exponent are spent where its weights are;
weights that a file has in this format keep their values. There is no state but the layers' own: a run that ends in the
middle of a layer leaves nothing behind.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from modules.families.upcast import Stored

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
FILE_DTYPES = ("F8_E4M3", "F8_E5M2")
_CUT = 20  # bits of float32's mantissa beyond the 3 of float8's

# Small, and the picture depends on every bit of them: they stay as they are.
WHOLE = ("conv_in", "conv_out", "time_embedding", "add_embedding")


class Kept:
    """What the two kinds of layers share."""

    weight: Tensor  # float8
    scale: Tensor  # (outputs, 1, …), in the dtype that the layer computes in
    keeps_full: bool  # the setting cache_fp16_weight
    full: Tensor | None = None  # then the weight in all its bits, in main memory, with the LoRAs that were added

    def taken(self, weight: Tensor, scale: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
        """weight: (outputs, …) float32, to be multiplied by `scale` where there is one -> what is to be `weight`. The
        layer will compute in `dtype`."""
        q, own = packed(weight)
        if scale is not None:
            own = own * scale.reshape(-1, *[1] * (weight.ndim - 1))
        elif self.keeps_full:
            self.full = weight.to("cpu", dtype)
        self.scale = own.to(dtype)
        return q.contiguous(memory_format=torch.channels_last) if channels_last and q.ndim == 4 else q

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight as the layer computes with it."""
        return self.weight.detach().to(dtype).mul_(self.scale.to(dtype))

    def base(self) -> Tensor:
        """(outputs, …) float32: what a LoRA is added to."""
        return self.whole(torch.float32) if self.full is None else self.full.to(self.weight.device, torch.float32)

    def add(self, change: Tensor) -> None:
        """Adds to the weight. Without `full`, what is already rounded would mostly be rounded back to where it was:
        then it is rounded up or down by chance in proportion, by the same chance each time."""
        changed = self.base() + change.to(self.weight.device, torch.float32)
        q, scale = packed(changed, by_chance=self.full is None)
        if self.full is not None:
            self.full = changed.to("cpu", self.full.dtype)
        with torch.no_grad():
            self.weight.copy_(q)
            self.scale.copy_(scale)


class KeptLinear(Kept, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.whole(x.dtype), self.bias)


class KeptConv2d(Kept, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.whole(x.dtype), self.bias)
        return y


def keep(unet: nn.Module, keeps_full: bool = False) -> None:
    """Its layers become such, before their weights are read (weights.fill)."""
    for name, module in list(unet.named_modules()):
        kind: type[Any] | None = {nn.Linear: KeptLinear, nn.Conv2d: KeptConv2d}.get(type(module))
        if kind is None or name.startswith(WHOLE):
            continue
        # The layer stays the same object: whoever holds it, holds it still.
        module.__class__ = kind
        weight = module._parameters["weight"]
        assert weight is not None
        module.register_buffer("scale", weight.detach().new_empty(scale_shape(weight)), persistent=False)
        module.keeps_full = keeps_full


def computes_in(layer: nn.Module) -> torch.dtype:
    """What a layer multiplies in, whatever its weight is kept in."""
    if isinstance(layer, Kept):
        return layer.scale.dtype
    if isinstance(layer, Stored):
        return torch.float32
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.dtype


def scale_shape(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *[1] * (weight.ndim - 1))


def packed(weight: Tensor, by_chance: bool = False) -> tuple[Tensor, Tensor]:
    """float32 -> (float8, scale (outputs, 1, …) float32), of which the product is the weight."""
    largest = weight.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST))).reshape(scale_shape(weight))
    scaled = weight / scale
    if by_chance:
        generator = torch.Generator(weight.device).manual_seed(math.prod(weight.shape))
        chance = torch.empty_like(scaled, dtype=torch.int32).random_(0, 1 << _CUT, generator=generator)
        scaled = ((scaled.view(torch.int32) + chance) >> _CUT << _CUT).view(torch.float32)
    return scaled.clamp_(-LARGEST, LARGEST).to(FP8), scale
