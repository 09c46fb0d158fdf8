"""A LoRA file, or one of LoRA's relatives: which of its tensors belong together, what they change in a model, and for
which family they were made. Says so in sentences where they do not fit."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modules.families.family import Model
from modules.families.networks.deltas import BadNetwork, Delta, delta_of
from modules.families.networks.names import Target, grouped, is_of_transformer
from modules.families.networks.tensors import Tensors
from modules.library.header import ModelFileError
from modules.library.network_tags import Network

BUNDLED = "bundle_emb."  # embeddings inside of a LoRA: bundle_emb.NAME.string_to_param.*
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}  # of what the UNet attends to
IGNORED = ("scalar",)  # parts that LyCORIS keeps for training
MAX_TOLD = 3  # names in one warning

Targets = Mapping[tuple[str, str], Target]


class Misfit(ModelFileError):
    """A sound file that is for other models."""


@dataclass
class Fit:
    """What of a file found its place."""

    changes: list[tuple[Target, dict[str, str]]] = field(default_factory=list)  # target, {part: name in the file}
    unknown: list[str] = field(default_factory=list)
    layers: int = 0
    idle: int = 0  # layers whose alpha is 0, so that they change nothing
    bundled: dict[str, dict[str, str]] = field(default_factory=dict)  # embedding: {its entry: name in the file}


def fit(tensors: Tensors, model: Model, targets: Targets) -> Fit:
    """Raises Misfit where nothing, or nothing of its UNet part, has a place in this model, or where it is known to be
    for another family, of which some layers may be called and shaped alike."""
    found = Fit()
    names = {}
    for name, shape in tensors.shapes.items():
        if name.startswith(BUNDLED):
            emb, _, entry = name.removeprefix(BUNDLED).partition(".")
            found.bundled.setdefault(emb, {})[entry] = name
        else:
            names[name] = shape
    groups, strangers = grouped(names)
    found.unknown += strangers
    found.layers = len(groups)
    fits: set[str] = set()
    for (component, layer), parts in groups.items():
        target = targets.get((component, layer))
        if target is None:
            found.unknown.append(layer)
            continue
        found.changes.append((target, {part: name for part, name in parts.items() if part not in IGNORED}))
        fits.add(target.component)
    has_unet = any(component == "unet" for component, _ in groups)
    stranger = family_by_width(tensors) not in (None, model.family)
    if stranger or (names and not fits) or (has_unet and "unet" not in fits) or not (groups or found.bundled):
        raise Misfit(tensors.path, _misfit(tensors, model, found))
    return found


def _misfit(tensors: Tensors, model: Model, found: Fit) -> str:
    made_for = made_for_family(tensors)
    if not found.layers and not made_for:
        shown = ", ".join(list(tensors.shapes)[:MAX_TOLD])
        return f"it is no LoRA: its tensors are called {shown}"
    keys = f"{len(found.changes)} of {found.layers} keys match"
    if made_for and made_for != model.family:
        return f"{keys}: it is for {made_for}, this checkpoint is {model.family}"
    shown = ", ".join(found.unknown[:MAX_TOLD])
    return f"{keys} this checkpoint, which is {model.family}; unknown are {shown}"


def family_by_width(tensors: Tensors) -> str | None:
    """The family's name, by how wide the text is that its UNet part reads; None where that does not tell."""
    groups, _ = grouped(tensors.shapes)
    for (component, layer), parts in groups.items():
        if component == "unet" and layer.endswith("attn2_to_k"):
            for part in ("lora_down.weight", "hada_w1_b", "diff"):
                shape = tensors.shapes[parts[part]] if part in parts else ()
                if len(shape) > 1 and (family := WIDTHS.get(shape[1])):
                    return family
    return None


def made_for_family(tensors: Tensors) -> str | None:
    """The family's name, by whatever tells of it."""
    if family := family_by_width(tensors):
        return family
    groups, _ = grouped(tensors.shapes)
    if any(is_of_transformer(name) for name in tensors.shapes):
        return "a model without UNet (SD 3, Flux or alike)"
    if any(component == "text_encoder_2" for component, _ in groups):
        return "SDXL"
    stated = tensors.metadata.get("ss_base_model_version", "")
    return next((name for start, name in (("sdxl", "SDXL"), ("sd_v2", "SD 2.x")) if stated.startswith(start)), None)


def changes(tensors: Tensors, network: Network, found: Fit) -> Iterator[tuple[Target, Delta]]:
    """Each weight's change, times the network's weight. A layer whose shapes do not fit is told in `found.unknown`;
    where none fits, Misfit is raised; where something is no number, ModelFileError."""
    misfits = 0
    stated = peft_config(tensors)
    for target, names in found.changes:
        multiplier = network.unet if target.component == "unet" else network.text
        weight = target.weight()
        parts = {part: tensors.read(name, weight.device) for part, name in names.items()}
        if "alpha" not in parts and (scale := peft_scale(stated, next(iter(names.values())), parts)) is not None:
            parts["scale"] = torch.tensor(scale)
        found.idle += "alpha" in parts and not parts["alpha"].any()
        try:
            delta = delta_of(parts, weight, network.dim, multiplier)
        except BadNetwork as error:
            misfits += 1
            layer = next(iter(names.values())).rsplit(".", 1)[0]
            if _is_broken(parts):
                raise ModelFileError(tensors.path, f"{layer}: {error}") from error
            if misfits == len(found.changes):
                raise Misfit(tensors.path, f"{layer}: {error}") from error
            found.unknown.append(f"{layer} ({error})")
            continue
        for change in (delta.weight, delta.bias):
            if change is not None and not change.sum().isfinite() and not change.isfinite().all():
                layer = next(iter(names.values())).rsplit(".", 1)[0]
                raise ModelFileError(tensors.path, f"{layer} holds NaN or infinite numbers; the file is damaged")
        yield target, delta


def peft_config(tensors: Tensors) -> Mapping[str, Any]:
    """What diffusers writes of a LoRA's training into the metadata: unet.lora_alpha, unet.alpha_pattern, …"""
    try:
        stated = json.loads(tensors.metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ModelFileError(tensors.path, f"its metadata lora_adapter_metadata are no JSON ({error})") from None
    return stated if isinstance(stated, dict) else {}


def peft_scale(stated: Mapping[str, Any], name: str, parts: Mapping[str, Tensor]) -> float | None:
    """Of the layer that the tensor `name` belongs to: alpha / rank, or with rank-stabilised LoRA alpha / √rank."""
    component, _, layer = name.partition(".")
    patterns = stated.get(f"{component}.alpha_pattern")
    special = (alpha for key, alpha in (patterns or {}).items() if f".{layer}".find(f".{key}.") >= 0)
    alpha = next(special, stated.get(f"{component}.lora_alpha"))
    if not isinstance(alpha, int | float) or "lora_down.weight" not in parts:
        return None
    rank = max(1, parts["lora_down.weight"].shape[0])
    return alpha / rank**0.5 if stated.get(f"{component}.use_rslora") else alpha / rank


def _is_broken(parts: Mapping[str, Tensor]) -> bool:
    """Not merely of another shape: it would be broken in any model."""
    empty = any(tensor.numel() == 0 for tensor in parts.values())
    return empty or any(t.is_floating_point() and not t.isfinite().all() for t in parts.values())
