"""Attention in diffusers' UNets and VAEs, by the backend that was chosen; what the UNet makes of a prompt's vectors is
made once a run, not at every step. Knows layers; which backends there are is told in runtime/attention.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from modules.families.family import Model
from modules.runtime.attention import AUTOMATIC, Backend, backend_for, upcast
from modules.runtime.device import Placement


class Made(NamedTuple):
    """Keys and values of one layer."""

    state: tuple[object, ...]  # of the layers that made them
    keys: Tensor  # (B, M, C)
    values: Tensor


class Attending:
    """What computes all attention of one network: a processor, in diffusers' words."""

    def __init__(self, backend: Backend):
        self.backend, self.upcast = backend, False
        # By the prompts' vectors, as long as those live, then by layer.
        self._made: Any = WeakTensorKeyDictionary()

    def __call__(
        self,
        layer: Attention,
        hidden_states: Tensor,  # (B, N, C), or (B, C, H, W) in VAEs
        encoder_hidden_states: Tensor | None = None,  # (B, M, D): the prompts; None: self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual = x = hidden_states
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if layer.group_norm is not None:
            x = layer.group_norm(x.transpose(1, 2)).transpose(1, 2)
        q = _heads(layer, layer.to_q(x))
        if encoder_hidden_states is None:
            k, v = layer.to_k(x), layer.to_v(x)
        else:
            k, v = self._keys_and_values(layer, encoder_hidden_states)
        mask = None
        if attention_mask is not None:
            mask = layer.prepare_attention_mask(attention_mask, k.shape[1], len(k))
            mask = mask.view(len(k), layer.heads, -1, mask.shape[-1])
        attend = partial(upcast, self.backend.attend) if self.upcast else self.backend.attend
        out = attend(q, _heads(layer, k), _heads(layer, v), mask).transpose(1, 2).flatten(2)
        out = layer.to_out[1](layer.to_out[0](out))
        if residual.ndim == 4:
            out = out.transpose(1, 2).view(residual.shape)
        if layer.residual_connection:
            out = residual + out  # in this order: the sum has the memory layout of its first part
        whole: Tensor = out if layer.rescale_output_factor == 1 else out / layer.rescale_output_factor
        return whole

    def _keys_and_values(self, layer: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        # In training both the layers and the prompts may be what learns. Where layers come to the device just before
        # they are called, each call brings the next one: none may be left out.
        # What is compiled or recorded must not remember one prompt's.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or hasattr(layer.to_k, "_diffusers_hook"):
            return layer.to_k(context), layer.to_v(context)
        layers: dict[int, Made] = self._made.setdefault(context, {})
        state = (*state_of(layer.to_k), *state_of(layer.to_v))
        made = layers.get(id(layer))
        if made is None or made.state != state:
            made = layers[id(layer)] = Made(state, layer.to_k(context), layer.to_v(context))
        return made.keys, made.values

    @property
    def kept(self) -> int:
        """Bytes of keys and values that are kept by now."""
        return sum(x.nbytes for layers in self._made.values() for made in layers.values() for x in made[1:])


def state_of(layer: nn.Module) -> tuple[object, ...]:
    """Differs as soon as the layer would give something else for the same: other weights (LoRAs that were added to
    them), or hooks (LoRAs beside them, hypernetworks), each of which has a number of its own."""
    weights = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    versions = [(id(weight), weight.dtype, weight._version) for weight in weights if not weight.is_inference()]
    return (*versions, "before", *layer._forward_pre_hooks, "after", *layer._forward_hooks)


def _heads(layer: Attention, x: Tensor) -> Tensor:
    """(B, N, H·D) -> (B, H, N, D)."""
    return x.view(*x.shape[:2], layer.heads, -1).transpose(1, 2)


def attend_in(network: nn.Module, placement: Placement) -> Attending:
    """Gives a new network the backend of its machine."""
    attending = Attending(backend_for(AUTOMATIC, placement.attention, placement.device))
    for layer in network.modules():
        if isinstance(layer, Attention):
            layer.set_processor(attending)
    return attending


def attending_of(network: nn.Module) -> Attending | None:
    """None for a network without attention."""
    found = (layer.processor for layer in network.modules() if isinstance(layer, Attention))
    return next((processor for processor in found if isinstance(processor, Attending)), None)


@contextmanager
def attention(model: Model, backend: Backend, upcast: bool = False) -> Iterator[None]:
    """Within, the model's UNet and VAE attend by this backend; `upcast`: the UNet in fp32."""
    parts = [attending_of(model.components[name]) for name in ("unet", "vae")]
    before = [(part, part.backend, part.upcast) for part in parts if part]
    for part, _, _ in before:
        part.backend, part.upcast = backend, upcast
    try:
        yield
    finally:
        for part, own, was_upcast in before:
            part.backend, part.upcast = own, was_upcast
