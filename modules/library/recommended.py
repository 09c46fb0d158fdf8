"""What a checkpoint was made for: the size, sampler, steps and CFG scale that its kind wants, from its header, its
metadata and its name. Advice to show; nothing here changes what the user asked for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modules.library.checkpoints import PICKLED, Checkpoint
from modules.library.facts import UNET, family_by_encoders
from modules.library.folders import INDEX, config_of_part
from modules.library.gguf import is_gguf, read_gguf_header
from modules.library.header import Header, ModelFileError, read_header

SIZE = re.compile(r"(\d{3,4})x(\d{3,4})")
STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")


@dataclass(frozen=True)
class Recommended:
    family: str | None  # "SD 1.x", "SD 2.x", "SDXL", "SDXL refiner"; None: it can't be told without loading it
    width: int  # pixels
    height: int
    sampler: str
    schedule: str
    steps: int
    cfg_scale: float
    why: str  # a sentence for people


USUAL: Mapping[str | None, Recommended] = {
    family: Recommended(family, size, size, "DPM++ 2M", "Automatic", 20, scale, why)
    for family, size, scale, why in (
        ("SD 1.x", 512, 7.0, "SD 1.x was trained on 512×512 pixels"),
        ("SD 2.x", 512, 7.0, "the base of SD 2.x was trained on 512×512 pixels"),
        ("SDXL", 1024, 7.0, "SDXL was trained on about one megapixel"),
        ("SDXL refiner", 1024, 7.0, "the refiner takes over the last fifth of SDXL's steps"),
        (None, 512, 7.0, "its kind can't be told from its name"),
    )
}


def recommended(checkpoint: Checkpoint) -> Recommended:
    """Reads the header only. Of a broken file, what its name tells."""
    name = checkpoint.model_name.casefold()
    header = _header(checkpoint.path)
    family = family_of(header) if header else _family_by_name(checkpoint.path, name)
    advice = USUAL[family]
    metadata = header.metadata if header else {}
    if family == "SD 2.x" and _predicts_v(checkpoint.path, header, name):
        advice = replace(advice, width=768, height=768, why="SD 2.x with v-prediction was trained on 768×768 pixels")
    elif header and "v_pred" in header.tensors:
        why = f"{family} with v-prediction wants a lower CFG scale and plain steps"
        advice = replace(advice, sampler="Euler", steps=28, cfg_scale=5.0, why=why)
    advice = _distilled(advice, f"{name} {metadata.get('modelspec.title', '').casefold()}")
    size = SIZE.fullmatch(metadata.get("modelspec.resolution", "").replace(" ", ""))
    if size and 256 <= min(int(size[1]), int(size[2])):
        advice = replace(advice, width=int(size[1]), height=int(size[2]))
    return advice


def family_of(header: Header) -> str | None:
    """By the names of its tensors, as modules/families tells them apart."""
    return family_by_encoders(header.tensors) or None if f"{UNET}input_blocks.0.0.weight" in header.tensors else None


def _header(path: Path) -> Header | None:
    if path.is_dir() or path.suffix.rstrip().lower() in PICKLED:
        return None
    try:
        return read_gguf_header(path) if is_gguf(path) else read_header(path)
    except ModelFileError:
        return None


def _family_by_name(path: Path, name: str) -> str | None:
    if (path / INDEX).is_file():
        unet = config_of_part(path, "unet")
        if unet.get("addition_embed_type") == "text_time":
            return "SDXL" if (path / "text_encoder").is_dir() else "SDXL refiner"
        return "SD 2.x" if unet.get("use_linear_projection") is True else "SD 1.x"
    if re.search(r"refiner", name):
        return "SDXL refiner"
    if re.search(r"sd[-_ ]?xl|(?<![a-z])xl|xl(?![a-z])|pony|illustrious|noob", name):
        return "SDXL"
    return "SD 2.x" if re.search(r"(?<![a-z])v?(sd[-_ ]?)?2[-._][01]|512-base|768-v", name) else None


def _predicts_v(path: Path, header: Header | None, name: str) -> bool:
    if (path / INDEX).is_file():
        return config_of_part(path, "scheduler").get("prediction_type") == "v_prediction"
    stated = header.metadata.get("modelspec.prediction_type", "") if header else ""
    return stated.startswith("v") or bool(header and "v_pred" in header.tensors) or "768" in name


def _distilled(advice: Recommended, name: str) -> Recommended:
    """Checkpoints that make a picture in a few steps are told by their names only."""
    found = STEPS.search(name)
    steps = int(found[1]) if found else 0

    def quick(kind: str, sampler: str, schedule: str, usual: int, cfg_scale: float) -> Recommended:
        why = f"{kind} checkpoints want few steps and a CFG scale near 1; higher ones burn the picture"
        few = steps or usual
        return replace(advice, sampler=sampler, schedule=schedule, steps=few, cfg_scale=cfg_scale, why=why)

    if re.search(r"lightning|hyper[-_ ]?sd|(?<![a-z])hyper(?![a-z])", name):
        kind = "Lightning" if "lightning" in name else "Hyper"
        return quick(kind, "Euler", "SGM Uniform", 4 if kind == "Lightning" else 8, 1.0)
    if re.search(r"(?<![a-z])lcm(?![a-z])", name):
        return quick("LCM", "LCM", "Automatic", 8, 1.5)
    if re.search(r"(?<![a-z])dmd2?(?![a-z])", name):
        return quick("DMD", "LCM", "Automatic", 4, 1.0)
    if "turbo" in name:
        turbo = quick("Turbo", "Euler a", "Automatic", 4, 1.0)
        # Stability's own make 512×512; of others, merges with SDXL at its own size, nothing is known.
        return replace(turbo, width=512, height=512) if re.search(r"sd(_?xl)?[-_]turbo", name) else turbo
    return advice
