"""Hypernetworks in A1111's format: small networks that change what the UNet's attention makes keys and values of."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.families.family import Model
from modules.families.fp8 import computes_in
from modules.families.networks.lora import Misfit
from modules.families.networks.pickles import load_pickle
from modules.library.header import ModelFileError
from modules.library.network_tags import Network

# By A1111's names: its own, and those of torch in lower case.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "swish": nn.Hardswish,
    **{
        kind.__name__.lower(): kind
        for kind in (
            *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.CELU, nn.GELU, nn.Hardshrink),
            *(nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softplus),
            *(nn.Softshrink, nn.Softsign, nn.Tanhshrink),
        )
    },
}
_ENTRY = re.compile(r"linear\.?(\d+)\.(weight|bias)")
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}

Pair = tuple[nn.Module, nn.Module]  # for keys and for values


def load_hypernetwork(path: Path) -> dict[int, Pair]:
    """By the width that they work on. Raises ModelFileError."""
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelFileError(path, "it holds no hypernetwork")
    pairs: dict[int, Pair] = {}
    for width, states in content.items():
        if isinstance(width, int) and isinstance(states, Sequence) and len(states) >= 2:
            keys, values = (_network(path, content, width, state) for state in states[:2])
            pairs[width] = (keys, values)
    if not pairs:
        raise ModelFileError(path, "it is no hypernetwork: there are no layers by width in it")
    return pairs


def _network(path: Path, content: Mapping[Any, Any], width: int, state: Any) -> nn.Module:
    """Linear layers, each followed by its activation and perhaps a norm; dropout is for training only."""
    if not isinstance(state, Mapping):
        raise ModelFileError(path, f"its layers for the width {width} are no tensors by name")
    name = str(content.get("activation_func") or "linear").lower()
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ModelFileError(path, f"its activation {name[:40]!r} is not known; known are {known}")
    entries = _entries(path, width, state)
    linears = [index for index, tensors in entries.items() if tensors["weight"].dim() == 2]
    layers: list[nn.Module] = []
    size = width
    for index, tensors in sorted(entries.items()):
        weight, bias = tensors["weight"], tensors.get("bias")
        if weight.dim() == 2:
            if weight.shape[1] != size:
                raise ModelFileError(
                    path, f"its layer {index} for the width {width} reads {weight.shape[1]}, not {size}"
                )
            size = weight.shape[0]
            layers.append(_filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias))
            if index != max(linears) or content.get("activate_output", True):
                layers.append(ACTIVATIONS[name]())
        elif weight.shape == (size,):
            layers.append(_filled(nn.LayerNorm(size), weight, bias))
        else:
            raise ModelFileError(path, f"its layer {index} for the width {width} has the shape {tuple(weight.shape)}")
    if size != width or not linears:
        raise ModelFileError(path, f"its layers for the width {width} give {size} numbers")
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _entries(path: Path, width: int, state: Mapping[Any, Any]) -> dict[int, dict[str, Tensor]]:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        old, _, rest = str(key).partition(".")
        match = _ENTRY.fullmatch(f"{_OLD_NAMES[old]}.{rest}" if old in _OLD_NAMES else str(key))
        if match is None or not isinstance(tensor, Tensor):
            raise ModelFileError(path, f"its layers for the width {width} have an unknown entry {str(key)[:80]!r}")
        if not tensor.isfinite().all():
            raise ModelFileError(path, f"{key} for the width {width} holds NaN or infinite numbers; it is damaged")
        entries.setdefault(int(match[1]), {})[match[2]] = tensor.detach().float()
    for index, tensors in entries.items():
        if "weight" not in tensors:
            raise ModelFileError(path, f"its layer {index} for the width {width} has no weight")
    return entries


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})}, strict=False, assign=True)
    return layer


@contextmanager
def hypernetwork_applied(model: Model, network: Network) -> Iterator[None]:
    """On what those applied before it gave. Raises ModelFileError; Misfit if it is for other models."""
    pairs = load_hypernetwork(network.file.path)
    unet = model.components["unet"]
    layers = [(name, layer) for name, layer in unet.named_modules() if name.endswith((".to_k", ".to_v"))]
    if not any(layer.in_features in pairs for _, layer in layers):
        widths = sorted({layer.in_features for _, layer in layers})
        reason = f"it is for the widths {sorted(pairs)}, this checkpoint ({model.family}) has {widths}"
        raise Misfit(network.file.path, reason)
    with ExitStack() as undo:
        for name, layer in layers:
            if layer.in_features in pairs:
                reader = pairs[layer.in_features][0 if name.endswith(".to_k") else 1]
                dtype = computes_in(layer)
                reader.to(layer.weight.device, dtype)
                undo.callback(layer.register_forward_pre_hook(_hook(reader, network.unet, dtype)).remove)
        yield


def _hook(reader: nn.Module, strength: float, dtype: torch.dtype) -> Any:
    def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (context,) = given
        return (context + reader(context.to(dtype)) * strength,)

    return hook
