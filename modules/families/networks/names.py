"""From a tensor's name in a network file to the layer of the model that it changes: kohya's, LyCORIS', diffusers',
PEFT's and OpenCLIP's spellings, with the UNet's blocks called as in diffusers or as in single-file checkpoints."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modules.families import ldm
from modules.families.family import Model
from modules.families.fp8 import Kept
from modules.families.networks.deltas import PEFT_MAGNITUDE

_KOHYA = re.compile(
    r"\.(lora_(?:up|down|mid)\.weight|lora_up\.bias|alpha|scale|dora_scale|hada_(?:w[12]_[ab]|t[12])"
    r"|lokr_(?:w[12](?:_[ab])?|t[12])|diff|diff_b|w_norm|b_norm|(?:a[12]|b[12m])\.weight|weight|on_input|oft_blocks"
    r"|oft_diag|rescale|bias_(?:indices|values|size)|scalar)$"
)
_PEFT = re.compile(r"\.lora_([AB])(?:\.(?!weight|bias)[\w-]+)?\.(weight|bias)$")
_PEFT_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.(?!weight)[\w-]+)?(?:\.weight)?$")
_DIFFUSERS = re.compile(r"(?:\.lora|\.lora_linear_layer|_lora)\.(up|down)\.weight$")

# What names begin with, flattened (dots are underscores), the longest first; and the part of the model.
_PREFIXES = (
    ("base_model_model_", ""),
    ("model_diffusion_model_", "unet"),
    ("diffusion_model_", "unet"),
    ("lora_unet_", "unet"),
    ("lycoris_unet_", "unet"),
    ("lycoris_", "unet"),
    ("unet_", "unet"),
    ("lora_te1_", "text_encoder_1"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lycoris_te_", "text_encoder"),
    ("text_encoder_2_", "text_encoder_2"),
    ("text_encoder_", "text_encoder"),
)
_BARE_UNET = re.compile(r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)_")
_BARE_TEXT = re.compile(r"(?:text_model_)?encoder_layers_")
_TRANSFORMER = re.compile(
    r"(?:lora_)?transformer_|lora_te3_|(?:lora_unet_)?(?:double|single|joint)_(?:transformer_)?blocks"
)

_OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Key:
    """What a tensor's name says."""

    component: str  # unet, text_encoder, text_encoder_1 (SDXL's first), text_encoder_2; "" if nothing tells
    layer: str  # flattened: down_blocks_0_attentions_0_proj_in
    part: str  # as deltas.py calls it


@dataclass(frozen=True)
class Target:
    """A weight of the model; or several that a file treats as one, stacked along their outputs."""

    component: str
    modules: tuple[nn.Module, ...]

    def weight(self) -> Tensor:
        """On its device, in its dtype."""
        weights = [weight_of(module) for module in self.modules]
        return weights[0] if len(weights) == 1 else torch.cat(weights)


def weight_of(module: nn.Module) -> Tensor:
    """As a number for a number that the layer computes with."""
    if isinstance(module, Kept):
        return module.base()
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.detach()


def key_of(name: str) -> Key | None:
    """None for a name that is no part of a LoRA or its relatives."""
    if match := _PEFT.search(name):
        part = f"lora_{'down' if match[1] == 'A' else 'up'}.{match[2]}"
    elif match := _PEFT_MAGNITUDE.search(name):
        part = PEFT_MAGNITUDE
    elif match := _DIFFUSERS.search(name):
        part = f"lora_{match[1]}.weight"
    elif match := _KOHYA.search(name):
        part = match[1]
    else:
        return None
    layer = name[: match.start()].replace(".processor.to_out", ".to_out_0").replace(".processor.", ".")
    layer = layer.replace(".", "_")
    component = ""
    for prefix, owner in _PREFIXES:
        if layer.startswith(prefix):
            layer, component = layer[len(prefix) :], owner or component
            if owner:
                break
    if not component and _BARE_UNET.match(layer):
        component = "unet"
    elif not component and _BARE_TEXT.match(layer):
        component = "text_encoder"
    if component.startswith("text"):
        layer = layer.removeprefix("model_").removeprefix("text_model_")
    return Key(component, layer, part)


def is_of_transformer(name: str) -> bool:
    """Whether the name is one of SD 3, Flux and alike, which have no UNet."""
    return _TRANSFORMER.match(name.replace(".", "_")) is not None


def targets_of(model: Model) -> dict[tuple[str, str], Target]:
    """Every weight that a file may name, by (component, flattened name)."""
    found: dict[tuple[str, str], Target] = {}
    for component, network in model.components.items():
        if component == "vae":
            continue
        spellings = _unet_spellings(network) if component == "unet" else _text_spellings(network)
        for name, modules in spellings:
            found[component, name.replace(".", "_")] = Target(component, modules)
    if "text_encoder_2" in model.components:
        for (component, name), target in list(found.items()):
            if component == "text_encoder":
                found["text_encoder_1", name] = target
    return found


def _weighted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        if isinstance(module._parameters.get("weight"), nn.Parameter):
            yield name, module


def _unet_spellings(unet: Any) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    single_file = {
        ours.removesuffix(".weight"): theirs.removeprefix(ldm.UNET).removesuffix(".weight")
        for ours, theirs in ldm.unet_names(unet.state_dict(), unet.config.layers_per_block)
    }
    for name, module in _weighted(unet):
        yield name, (module,)
        if name in single_file:
            yield single_file[name], (module,)


def _text_spellings(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    modules: dict[str, nn.Module] = {}
    for name, module in _weighted(network):
        modules[name.removeprefix("text_model.")] = module
    for name, module in modules.items():
        yield name, (module,)
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match and match[2] in _OPENCLIP:
            yield f"transformer.resblocks.{match[1]}.{_OPENCLIP[match[2]]}", (module,)
        elif match and match[2] == "self_attn.q_proj":
            attention = name.removesuffix("q_proj")
            together = tuple(modules[f"{attention}{letter}_proj"] for letter in "qkv")
            yield f"transformer.resblocks.{match[1]}.attn.in_proj", together
        elif name == "final_layer_norm":
            yield "ln_final", (module,)


def grouped(names: Mapping[str, Any]) -> tuple[dict[tuple[str, str], dict[str, str]], list[str]]:
    """({(component, layer): {part: name in the file}}, names that are no part of a LoRA)."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    strangers: list[str] = []
    for name in names:
        key = key_of(name)
        if key is None:
            strangers.append(name)
        else:
            groups.setdefault((key.component, key.layer), {})[key.part] = name
    return groups, strangers
