"""Checkpoints that are folders, as diffusers saves them: model_index.json, and a folder for each network. Knows names
of files; nothing in them is ever run or looked up."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.library.header import ModelFileError

INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")
PIPELINES = frozenset(
    f"StableDiffusion{kind}{task}Pipeline"
    for kind in ("", "XL")
    for task in ("", "Img2Img", "Inpaint", "InstructPix2Pix")
)
MAX_JSON = 4 * 2**20  # bytes


def is_checkpoint(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def files_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files with the weights of each network. Raises ModelFileError where there are none, or of another kind of
    model."""
    name = read_json(folder / INDEX).get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        shown = name if isinstance(name, str) else "code of its own"
        raise ModelFileError(folder, f"a folder of {shown[:80]!r}, which is not supported; known: Stable Diffusion, XL")
    found = {part: tuple(_weights(folder / part)) for part in PARTS if (folder / part).is_dir()}
    missing = [part for part in ("unet", "vae") if not found.get(part)]
    if missing or not (found.get("text_encoder") or found.get("text_encoder_2")):
        raise ModelFileError(
            folder, f"the folder is incomplete: there are no weights in {', '.join(missing or ['text_encoder'])}"
        )
    return found


def config_of_part(folder: Path, part: str) -> Mapping[str, Any]:
    """What is said beside the weights; empty where nothing is."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = folder / part / name
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelFileError."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(path, f"has more than {MAX_JSON >> 20} MiB; it should be a short text")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(path, f"cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(path, "is not a JSON object")
    return content


def _weights(folder: Path) -> Iterator[Path]:
    for ending in ENDINGS:
        for stem in STEMS:
            whole = folder / f"{stem}.{ending}"
            if whole.is_file():
                yield whole
                return
            variant, _, suffix = ending.rpartition(".")
            index = folder / f"{stem}.{suffix}.index{'.' + variant if variant else ''}.json"
            if index.is_file():
                yield from _shards(index)
                return


def _shards(index: Path) -> Iterator[Path]:
    mapping = read_json(index).get("weight_map")
    names = set(mapping.values()) if isinstance(mapping, dict) else set()
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise ModelFileError(index, f"it names {name[:80]!r}, which is no file beside it")
        if not (index.parent / name).is_file():
            raise ModelFileError(index, f"it names {name[:80]!r}, which is not there; the download is incomplete")
        yield index.parent / name
