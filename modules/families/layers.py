"""diffusers' layers, computed with fewer passes over memory: the same formulas, no tensor written that is only read
once more, no copy into another memory layout. In bf16 on a CPU matrix products go to oneDNN with what follows them. A
layer that trains computes as it always did.

Layers are made so by changing their class: names of parameters, hooks, and what others put on them stay."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

# Of a picture or batch: below it a convolution is faster as one matrix product, for oneDNN sorts the weights anew at
# every call, which takes longer than such small ones. Measured with 640 to 2560 channels.
FEW_CELLS = 512
# On a processor with AVX2 alone oneDNN's products in bf16 fail; torch's own are slow there, but right.
_ONEDNN = torch.ops.mkldnn  # without these where torch was built without it
ONEDNN_HAS_BF16 = hasattr(_ONEDNN, "_is_mkldnn_bf16_supported") and bool(_ONEDNN._is_mkldnn_bf16_supported())


def hastened(network: nn.Module) -> None:
    """Once, when the network is built."""
    for layer in network.modules():
        faster = FASTER.get(type(layer))
        if faster:
            layer.__class__ = faster


def by_onednn(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled() and ONEDNN_HAS_BF16


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """`activation`: none or gelu."""
    if by_onednn(x) and weight.dtype is x.dtype and x.numel():
        # torch adds a bias by filling the result with it first; here it is added on the way out.
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
        return result
    result = functional.linear(x, weight, bias)
    return functional.gelu(result) if activation == "gelu" else result


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.with_weights(input, self.weight, self.bias)

    def with_weights(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not by_onednn(input) or weight.dtype is not input.dtype or self.groups != 1:
            result: Tensor = self._conv_forward(input, weight, bias)
            return result
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            return _as_product(input.permute(0, 2, 3, 1), weight, bias)
        taken = input.shape[0] * input.shape[2] * input.shape[3]
        if self.kernel_size != (3, 3) or self.padding != (1, 1) or self.dilation != (1, 1) or taken > FEW_CELLS:
            result = self._conv_forward(input, weight, bias)
            return result
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(input, (1, 1, 1, 1), mode).permute(0, 2, 3, 1).contiguous()
        batch, height, width, channels = padded.shape
        down, across = self.stride
        b, h, w, _ = padded.stride()
        size = (batch, (height - 3) // down + 1, (width - 3) // across + 1, 3, 3 * channels)
        # Three cells side by side are one piece of memory.
        seen = padded.as_strided(size, (b, h * down, w * across, h, 1)).reshape(*size[:3], 9 * channels)
        return _as_product(seen, weight, bias)


def _as_product(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """seen: (B, H, W, what a cell sees) -> (B, C, H, W), channels last."""
    rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    return linear(seen, rows, bias).permute(0, 3, 1, 2)


class Gated(GEGLU):  # type: ignore[misc]
    """GEGLU whose halves are computed apart: whole tensors are read four times as fast as halves of rows."""

    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        both = self.proj
        # A layer of another kind (8-bit weights) or with a LoRA beside it gives more than its weights say.
        if type(both) is not Linear or both._forward_hooks or both._forward_pre_hooks or torch.is_grad_enabled():
            whole: Tensor = super().forward(hidden_states, *rest, **named)
            return whole
        if not by_onednn(hidden_states):
            value, gate = both(hidden_states).chunk(2, dim=-1)
            return functional.gelu(gate).mul_(value)
        half = both.out_features // 2
        biases = (None, None) if both.bias is None else (both.bias[:half], both.bias[half:])
        gate = linear(hidden_states, both.weight[half:], biases[1], "gelu")
        return gate.mul_(linear(hidden_states, both.weight[:half], biases[0]))


class Residual(ResnetBlock2D):  # type: ignore[misc]
    """ResnetBlock2D of the kind that UNets and VAEs of Stable Diffusion have, in place."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        if torch.is_grad_enabled() or self.up or self.down or self.time_embedding_norm != "default":
            whole: Tensor = super().forward(input_tensor, temb, *rest, **named)
            return whole
        x: Tensor = self.conv1(_silu(self.norm1(input_tensor)))
        if self.time_emb_proj is not None and temb is not None:
            x.add_(self.time_emb_proj(functional.silu(temb))[:, :, None, None])
        x = self.conv2(_silu(self.norm2(x)))
        x.add_(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))
        return x if self.output_scale_factor == 1 else x.div_(self.output_scale_factor)


def _silu(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=True)


class Transformer(Transformer2DModel):  # type: ignore[misc]
    """Transformer2DModel that gives back the memory layout that it was given."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        last = residual.is_contiguous(memory_format=torch.channels_last) and not residual.is_contiguous()
        if torch.is_grad_enabled() or not last:
            whole: Tensor = super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
            return whole
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        x = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            x = self.proj_out(x)
        return x.add_(residual)


FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    GEGLU: Gated,
    ResnetBlock2D: Residual,
    Transformer2DModel: Transformer,
}
