"""What a merged checkpoint is made of, in words: the methods' names, the name that the result gets of itself, and what
its metadata tell, in A1111's shape. Knows no weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modules.library.checkpoints import Checkpoint
from modules.library.header import Header

Method = Literal["No interpolation", "Weighted sum", "Add difference"]
ConfigFrom = Literal["A, B or C", "B", "C", "Don't"]
PARENTS: Mapping[Method, int] = {"No interpolation": 1, "Weighted sum": 2, "Add difference": 3}
CONFIGS: Mapping[ConfigFrom, tuple[int, ...]] = {"A, B or C": (0, 1, 2), "B": (1,), "C": (2,), "Don't": ()}
Special = Literal["", "inpainting", "instruct-pix2pix"]
SPECIAL: Mapping[int, Special] = {9: "inpainting", 8: "instruct-pix2pix"}  # by the channels that the UNet takes
PLAIN = 4  # channels
FIRST = "model.diffusion_model.input_blocks.0.0.weight"

# Without these a file may be read as another model than it is: they stay, whatever is asked of the metadata.
NEEDED = ("easel.config", "modelspec.prediction_type")
UNTRUE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # once the weights are others


@dataclass(frozen=True)
class Parent:
    checkpoint: Checkpoint  # with its sha256
    legacy_hash: str | None  # as in 2022; folders have none
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    method: Method
    multiplier: float  # 0–1
    half: bool  # saved as float16
    config_from: ConfigFrom
    vae: str  # baked in: its name, or "None"
    discard: str  # regular expression
    name: str  # as the user gave it


def automatic_name(method: Method, names: Sequence[str], multiplier: float) -> str:
    """As A1111 names a merge that nobody named."""
    share, rest = round(multiplier, 2), round(1 - multiplier, 2)
    if method == "Weighted sum":
        return f"{float(rest)}({names[0]}) + {float(share)}({names[1]})"
    if method == "Add difference":
        return f"{names[0]} + {float(share)}({names[1]} - {names[2]})"
    return names[0]


def special_of(first: Header | None, second: Header | None) -> Special:
    """What the result is, and its name says, where A is such a model and B is a plain one."""
    own, other = (header.tensors.get(FIRST) if header else None for header in (first, second))
    if own is None or other is None or len(own.shape) != 4 or len(other.shape) != 4 or other.shape[1] != PLAIN:
        return ""
    return SPECIAL.get(own.shape[1], "")


def config_of(config_from: ConfigFrom, parents: Sequence[Checkpoint]) -> Checkpoint | None:
    """The parent whose .yaml the result gets."""
    chosen = (parents[index] for index in CONFIGS[config_from] if index < len(parents))
    return next((one for one in chosen if one.config), None)


def together(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of several checkpoints; where they differ, the later one's. What is not true of a merge of them is left out."""
    found: dict[str, str] = {}
    for one in metadata:
        found |= one
    return {key: value for key, value in found.items() if key not in (*UNTRUE, "format")}


def recipe_metadata(recipe: Recipe, parents: Sequence[Parent], special: Special) -> dict[str, str]:
    """A1111's sd_merge_recipe and sd_merge_models: how it was made, and of what; grandparents too."""
    hashes = [parent.checkpoint.sha256 for parent in parents]
    first, second, third = [*hashes, None, None][:3]
    written = {
        "type": "webui",  # the shape: whatever reads A1111's recipes reads this one
        "primary_model_hash": first,
        "secondary_model_hash": second,
        "tertiary_model_hash": third,
        "interp_method": recipe.method,
        "multiplier": recipe.multiplier,
        "save_as_half": recipe.half,
        "custom_name": recipe.name,
        "config_source": list(CONFIGS).index(recipe.config_from),
        "bake_in_vae": recipe.vae,
        "discard_weights": recipe.discard,
        "is_inpainting": special == "inpainting",
        "is_instruct_pix2pix": special == "instruct-pix2pix",
    }
    models: dict[str, Any] = {}
    for parent in parents:
        models |= _read(parent.metadata.get("sd_merge_models"))
        models[str(parent.checkpoint.sha256)] = {
            "name": parent.checkpoint.name,
            "legacy_hash": parent.legacy_hash,
            "sd_merge_recipe": _read(parent.metadata.get("sd_merge_recipe")) or None,
        }
    return {"sd_merge_recipe": json.dumps(written), "sd_merge_models": json.dumps(models)}


def _read(written: str | None) -> dict[str, Any]:
    """What a parent says of itself may be anything."""
    try:
        found = json.loads(written or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
