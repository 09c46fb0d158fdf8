"""--upcast-sampling: a UNet whose weights are halves, and in which only matrix products and convolutions are computed
in halves. All else is fp32: the latent that it takes, the timestep's embedding, norms, gates, what is added up from
layer to layer, and the last convolution, which says what the network predicts. And the other way to have fp32 in half
the memory: everything is computed in fp32, with weights that are halves in the file and in memory.

Layers are made so by changing their class: names of parameters, and hooks that others put on them, stay."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional


class Whole:
    """A layer whose weights are fp32 too (weights.fill)."""


class WholeLinear(Whole, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class WholeConv2d(Whole, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class WholeGroupNorm(Whole, nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class WholeLayerNorm(Whole, nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class HalfLinear(nn.Linear):
    """Gives halves: to attention, and to gates."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class SummedLinear(HalfLinear):
    """What it gives is added to something."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class SummedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).float()


class WholeGated(GEGLU):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        value, gate = self.proj(hidden_states).float().chunk(2, dim=-1)
        product: Tensor = value * functional.gelu(gate)
        return product


class PlainResidual(ResnetBlock2D):  # type: ignore[misc]
    """As it is: whoever makes it faster by adding in place would add in halves."""


class PlainTransformer(Transformer2DModel):  # type: ignore[misc]
    """The same."""


class UpcastUNet(UNet2DConditionModel):  # type: ignore[misc]
    def get_time_embed(self, sample: Tensor, timestep: Any) -> Tensor | None:
        """Not rounded to the latent's dtype."""
        given: Tensor | None = super().get_time_embed(sample.float(), timestep)
        return given


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SummedLinear,
    nn.Conv2d: SummedConv2d,
    nn.GroupNorm: WholeGroupNorm,
    nn.LayerNorm: WholeLayerNorm,
    GEGLU: WholeGated,
    ResnetBlock2D: PlainResidual,
    Transformer2DModel: PlainTransformer,
}
WHOLE = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")  # whose weights are fp32, by their beginnings
HALF = (".to_q", ".to_k", ".to_v", ".net.0.proj")  # what gives halves, by their ends


def upcast(unet: UNet2DConditionModel) -> None:
    """Before its weights are read."""
    unet.__class__ = UpcastUNet
    for name, layer in unet.named_modules():
        kind = KINDS.get(type(layer))
        if name.startswith(WHOLE) and kind in (SummedLinear, SummedConv2d):
            kind = WholeLinear if kind is SummedLinear else WholeConv2d
        elif name.endswith(HALF) and kind is SummedLinear:
            kind = HalfLinear
        if kind:
            layer.__class__ = kind


def dtype_in(layer: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Of this layer's weights, where those of the network are `dtype`."""
    stored: torch.dtype | None = getattr(layer, "stored", None)
    if stored is not None:
        return stored
    return torch.float32 if isinstance(layer, Whole) else dtype


class Stored:
    """A layer whose weights stay as they are in the file, and become what it is given for the time of its forward: no
    bit of the result is another, for half the memory."""

    stored: torch.dtype


class StoredLinear(Stored, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self.weight.to(input.dtype), bias)


class StoredConv2d(Stored, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        y: Tensor = self._conv_forward(input, self.weight.to(input.dtype), bias)
        return y


class StoredEmbedding(Stored, nn.Embedding):
    """Gives fp32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


STORED: dict[type[nn.Module], type[Any]] = {
    nn.Linear: StoredLinear,
    nn.Conv2d: StoredConv2d,
    nn.Embedding: StoredEmbedding,
}


def stored_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Before its weights are read."""
    for name, layer in network.named_modules():
        if (kind := STORED.get(type(layer))) and not name.startswith(WHOLE):
            layer.__class__ = kind
            layer.stored = dtype
