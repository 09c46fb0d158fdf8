"""A VAE on a processor that multiplies bf16 in hardware: what is added up from layer to layer is fp32,
as are the first and the last convolution; what is between two sums is computed in bf16. bf16 alone would show its 8
bits in flat colours; this does not (docs/benchmarks.md).

Layers are made so by changing their class: names of parameters, and hooks that others put on them, stay."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from modules.families.layers import Conv2d, linear

HALF = torch.bfloat16
# Few channels, and the picture depends on every bit of them.
WHOLE = ("conv_in", "conv_out", "quant_conv", "post_quant_conv")


def mixed(vae: AutoencoderKL, stored: torch.dtype | None = None) -> None:
    """Before its weights are read. `stored`: the halves that they are in the file, and stay in memory; None: fp32."""
    for name, layer in vae.named_modules():
        kind = KINDS.get(type(layer))
        if kind and not name.endswith(WHOLE):
            layer.__class__ = SummedLinear if name.endswith(".to_out.0") else kind
            if stored and issubclass(kind, HalfConv2d | HalfLinear):
                layer.stored = stored


class HalfConv2d(Conv2d):
    """Takes either dtype, gives bf16."""

    def forward(self, input: Tensor) -> Tensor:
        return self.with_weights(input.to(HALF), self.weight.to(HALF), _half(self.bias))


class HalfLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input.to(HALF), self.weight.to(HALF), _half(self.bias))


class SummedLinear(HalfLinear):
    """What it gives is added to something."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class MixedResidual(ResnetBlock2D):  # type: ignore[misc]
    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        x = input_tensor.to(HALF)
        inner = self.conv1(_active(self.norm1, x))
        beside = input_tensor if self.conv_shortcut is None else self.conv_shortcut(x)
        del x  # these tensors are the largest of a whole run
        inner = self.conv2(_active(self.norm2, inner))
        whole: Tensor = inner.float().add_(beside)
        return whole if self.output_scale_factor == 1 else whole / self.output_scale_factor


class MixedUpsample(Upsample2D):  # type: ignore[misc]
    """The halves are taken before the cells are doubled: it is the same, with less memory."""

    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        doubled: Tensor = super().forward(hidden_states.to(HALF), *rest, **named)
        return doubled


def _active(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return functional.silu(norm(x), inplace=not torch.is_grad_enabled())


def _half(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(HALF)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: HalfConv2d,
    nn.Linear: HalfLinear,
    ResnetBlock2D: MixedResidual,
    Upsample2D: MixedUpsample,
}
