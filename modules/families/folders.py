"""A diffusers folder seen as one file in the original layout: the same tensors, by the names that ldm.py knows."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules.families import ldm
from modules.families.hints import LayoutError
from modules.families.weights import RenamedHeader
from modules.library.folders import config_of_part, files_of
from modules.library.header import Header, ModelFileError

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of VAEs saved until 2023
Places = dict[str, tuple[Path, Header, str]]


def folder_header(folder: Path, header_of: Callable[[Path], Header]) -> RenamedHeader:
    """Raises ModelFileError for a folder that is incomplete, or of another kind of model."""
    files = files_of(folder)
    parts = {part: _tensors(paths, header_of) for part, paths in files.items()}
    kind = _kind(parts, folder)
    places: Places = {}
    unet = parts["unet"]
    try:
        for name, theirs in ldm.unet_names(unet, ldm.count(unet, r"down_blocks\.0\.resnets\.(\d+)\.")):
            places[theirs] = unet[name]
        places |= vae_places(parts["vae"], ldm.VAE)
    except LayoutError as error:
        raise ModelFileError(folder, str(error)) from None
    for part, prefix in TEXT_ENCODERS[kind].items():
        for name, place in parts[part].items():
            places[prefix + _text_name(name)] = place
    size = sum(path.stat().st_size for paths in files.values() for path in paths)
    return RenamedHeader(places, _metadata(folder, kind), size)


def vae_places(tensors: Mapping[str, tuple[Path, Header, str]], prefix: str) -> Places:
    """A VAE's tensors by the names of the original layout, from those of diffusers. Raises LayoutError."""
    today = {_today(name): place for name, place in tensors.items()}
    levels = ldm.count(today, r"encoder\.down_blocks\.(\d+)\.")
    return {theirs: today[name] for name, theirs in ldm.vae_names(today, levels, prefix)}


def is_vae_of_diffusers(header: Header) -> bool:
    return any(name.startswith("encoder.down_blocks.") for name in header.tensors)


def _today(name: str) -> str:
    match = re.fullmatch(r"(.+\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.(.+)", name)
    return f"{match[1]}{OLD_ATTENTION[match[2]]}.{match[3]}" if match else name


# The prefixes of the text encoders in the original layouts (sd1.py, sd2.py, sdxl.py).
TEXT_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd1": {"text_encoder": ldm.TEXT},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}


def _kind(parts: Mapping[str, Places], folder: Path) -> str:
    if "text_encoder_2" in parts:
        return "sdxl" if "text_encoder" in parts else "refiner"
    shapes = [
        place[1].tensors[place[2]].shape for name, place in parts["unet"].items() if name.endswith("proj_in.weight")
    ]
    if not shapes:
        raise ModelFileError(folder, "its UNet has no cross-attention: it can't be steered by a prompt")
    return "sd2" if len(shapes[0]) == 2 else "sd1"


def _tensors(paths: tuple[Path, ...], header_of: Callable[[Path], Header]) -> Places:
    headers = {path: header_of(path) for path in paths}
    return {name: (path, header, name) for path, header in headers.items() for name in header.tensors}


def _text_name(name: str) -> str:
    return name if name == "text_projection.weight" else f"text_model.{name.removeprefix('text_model.')}"


def _metadata(folder: Path, kind: str) -> dict[str, str]:
    """What the configs beside the weights say and shapes don't, in the words that hints.py reads."""
    unet, scheduler = config_of_part(folder, "unet"), config_of_part(folder, "scheduler")
    # diffusers' "attention_head_dim" is the number of heads, unless that is given too.
    sizes: dict[str, Any] = {
        "unet": {"num_heads": unet.get("num_attention_heads") or unet.get("attention_head_dim")},
        "zero_terminal_snr": scheduler.get("rescale_betas_zero_snr") is True,
    }
    for part in TEXT_ENCODERS[kind]:
        config = config_of_part(folder, part)
        known = {key: config[key] for key in ("num_attention_heads", "hidden_act") if key in config}
        sizes["text_encoder_2" if kind == "sd2" else part] = known
    return {
        "easel.config": json.dumps(sizes),
        "modelspec.prediction_type": str(scheduler.get("prediction_type", "")),
    }
