"""Networks applied to a model for as long as a `with` lasts; afterwards every weight is the same, bit for bit."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modules.families.family import Model
from modules.families.fp8 import Kept, computes_in
from modules.families.networks import lora
from modules.families.networks.deltas import Delta
from modules.families.networks.embeddings import Embedding, embedding_from
from modules.families.networks.hypernetworks import hypernetwork_applied
from modules.families.networks.names import Target, targets_of
from modules.families.networks.tensors import NetworkFiles
from modules.library.hashes import Fingerprint
from modules.library.header import ModelFileError
from modules.library.network_tags import Network


@dataclass
class Report:
    """What became of the networks."""

    warnings: list[str] = field(default_factory=list)  # sentences for people
    embeddings: dict[str, Embedding] = field(default_factory=dict)  # that came inside of LoRAs, by name
    text: list[Hashable] = field(default_factory=list)  # what has changed the text encoders


@contextmanager
def applied(
    model: Model,
    networks: Sequence[Network],
    functional: bool = False,
    lenient: bool = False,
    files: NetworkFiles | None = None,
) -> Iterator[Report]:
    """`functional`: the changes are computed beside the weights, as the setting lora_functional asks, instead of being
    added to them. `lenient`: what is made for other models is left out with a warning; a refiner gets the networks of a
    prompt that is written for another checkpoint. Else ModelFileError is raised for a network that cannot be used;
    nothing is changed then. `files`: those that were kept, and may be."""
    files = files or NetworkFiles()
    report = Report()
    loras = [network for network in networks if network.file.kind == "lora"]
    hypernetworks = [network for network in networks if network.file.kind == "hypernetwork"]
    with ExitStack() as undo:
        weights: _Weights | _Beside = _Beside(undo) if functional else _Weights(undo)
        targets = targets_of(model) if loras else {}
        with torch.no_grad():
            for network in loras:
                try:
                    _apply(network, model, targets, weights, report, files)
                except lora.Misfit as misfit:
                    _leave_out(misfit, lenient, report)
        for network in hypernetworks:
            try:
                undo.enter_context(hypernetwork_applied(model, network))
            except lora.Misfit as misfit:
                _leave_out(misfit, lenient, report)
        yield report


def _leave_out(misfit: lora.Misfit, lenient: bool, report: Report) -> None:
    if not lenient:
        raise misfit
    report.warnings.append(f"{misfit}; it was left out")


def _apply(
    network: Network,
    model: Model,
    targets: lora.Targets,
    weights: "_Weights | _Beside",
    report: Report,
    files: NetworkFiles,
) -> None:
    with files.opened(network.file.path) as tensors:
        found = lora.fit(tensors, model, targets)
        if any(target.component != "unet" for target, _ in found.changes):
            now = Fingerprint.of(network.file.path.stat())
            report.text.append((network.file.path, now, network.text, network.dim, type(weights)))
        for target, delta in lora.changes(tensors, network, found):
            weights.add(target, delta)
        for name, entries in found.bundled.items():
            parts = {entry: tensors.read(theirs) for entry, theirs in entries.items()}
            try:
                report.embeddings.setdefault(name, embedding_from(parts, name, network.file, bundled=True))
            except ModelFileError as error:
                report.warnings.append(f"its embedding {name!r}: {error}")
    if found.idle:
        report.warnings.append(
            f"{network.file.path.name}: alpha is 0 in {found.idle} of its layers, they change nothing"
        )
    if found.unknown:
        some = ", ".join(found.unknown[: lora.MAX_TOLD])
        more = f" and {len(found.unknown) - lora.MAX_TOLD} more" if len(found.unknown) > lora.MAX_TOLD else ""
        report.warnings.append(f"{network.file.path.name}: no place in this checkpoint for {some}{more}")


class _Weights:
    """Adds changes to the weights themselves. What was there before is kept beside, in main memory."""

    def __init__(self, undo: ExitStack):
        self._before: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._kept: dict[int, tuple[Kept, Tensor, Tensor, Tensor | None]] = {}
        self._without_bias: list[nn.Module] = []
        undo.callback(self._restore)

    def add(self, target: Target, delta: Delta) -> None:
        for module, weight, bias in _shares(target, delta):
            if weight is not None and isinstance(module, Kept):
                self._change_kept(module, weight)
            elif weight is not None:
                self._change(module._parameters["weight"], weight)
            if bias is not None:
                if module._parameters.get("bias") is None:
                    self._without_bias.append(module)
                    given = module._parameters["weight"]
                    assert given is not None
                    zeros = torch.zeros(bias.shape, dtype=computes_in(module), device=given.device)
                    module._parameters["bias"] = nn.Parameter(zeros, requires_grad=False)
                self._change(module._parameters["bias"], bias)

    def _change(self, parameter: nn.Parameter | None, change: Tensor) -> None:
        assert parameter is not None
        if id(parameter) not in self._before:
            self._before[id(parameter)] = (parameter, parameter.detach().to("cpu", copy=True))
        parameter.copy_(change.to(parameter.device).reshape(parameter.shape) + parameter.detach())

    def _change_kept(self, layer: Kept, change: Tensor) -> None:
        if id(layer) not in self._kept:
            weight, scale = (tensor.detach().to("cpu", copy=True) for tensor in (layer.weight, layer.scale))
            self._kept[id(layer)] = (layer, weight, scale, layer.full)
        layer.add(change.reshape(layer.weight.shape))

    def _restore(self) -> None:
        with torch.no_grad():
            for layer, weight, scale, full in self._kept.values():
                layer.weight.copy_(weight)
                layer.scale.copy_(scale)
                layer.full = full
            for parameter, before in self._before.values():
                parameter.copy_(before)
        for module in self._without_bias:
            module._parameters["bias"] = None


class _Beside:
    """Adds to what a layer gives what its changes alone would give."""

    def __init__(self, undo: ExitStack):
        self._undo = undo

    def add(self, target: Target, delta: Delta) -> None:
        for module, weight, bias in _shares(target, delta):
            given = module._parameters["weight"]
            assert given is not None
            to, dtype = given.device, computes_in(module)
            weight = None if weight is None else weight.to(to, dtype).reshape(given.shape)
            bias = None if bias is None else bias.to(to, dtype).reshape(given.shape[0])
            handle = module.register_forward_hook(_hook(weight, bias))
            self._undo.callback(handle.remove)


def _hook(own_weight: Tensor | None, own_bias: Tensor | None) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = given
        # The layer's own weights may have left the device already.
        weight, bias = (None if change is None else change.to(x.device) for change in (own_weight, own_bias))
        own = bias if weight is None else weight
        if own is not None and x.is_floating_point():
            x = x.to(own.dtype)  # with --upcast-sampling layers are given more than they compute with
        if isinstance(module, nn.Conv2d):
            zero = torch.zeros_like(module.weight, dtype=x.dtype, device=x.device) if weight is None else weight
            more: Tensor = module._conv_forward(x, zero, bias)
            return output + more
        if isinstance(module, nn.Embedding):
            return output if weight is None else output + nn.functional.embedding(x, weight)
        if isinstance(module, nn.Linear):
            zero = torch.zeros_like(module.weight, dtype=x.dtype, device=x.device) if weight is None else weight
            return output + nn.functional.linear(x, zero, bias)
        # A norm is linear in its weight and bias too.
        factor = torch.zeros_like(module.weight, device=x.device) if weight is None else weight  # type: ignore[arg-type]
        if isinstance(module, nn.GroupNorm):
            return output + nn.functional.group_norm(x, module.num_groups, factor, bias, module.eps)
        assert isinstance(module, nn.LayerNorm)
        return output + nn.functional.layer_norm(x, module.normalized_shape, factor, bias, module.eps)

    return hook


def _shares(target: Target, delta: Delta) -> Iterator[tuple[nn.Module, Tensor | None, Tensor | None]]:
    """The change of each module of the target."""
    sizes = [module._parameters["weight"].shape[0] for module in target.modules]  # type: ignore[union-attr]
    nothing = [None] * len(sizes)
    weights = nothing if delta.weight is None else torch.split(delta.weight, sizes)
    biases = nothing if delta.bias is None else torch.split(delta.bias.flatten(), sizes)
    yield from zip(target.modules, weights, biases, strict=True)
