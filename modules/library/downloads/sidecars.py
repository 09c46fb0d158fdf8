"""What is written beside a downloaded model, so that every program that knows A1111's folders shows it: a picture, the
words that trigger it, and Civitai's own description. Nothing that is there is overwritten."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.imaging.decode import ImageError, decode
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import disk_error
from modules.library.downloads.reach import Reach
from modules.library.downloads.sources import Found
from modules.library.sidecars import beside
from modules.runtime.files import write_whole

log = logging.getLogger(__name__)

MOST_PICTURE = 16 * 2**20  # bytes
LONGEST_SIDE = 768  # pixels of a preview
FAMILIES = (("SD 1", "SD1"), ("SD 2", "SD2"), ("SDXL", "SDXL"))  # what the base model begins with: A1111's name


def facts_of(found: Found) -> dict[str, Any]:
    return {
        "words": list(found.words),
        "base_model": found.base_model,
        "page": found.page,
        "preview": found.preview,
        "description": found.description,
        "licence": list(found.licence),
        "info": found.info,
    }


def write_beside(model: Path, facts: Mapping[str, Any], reach: Reach) -> list[str]:
    """Returns what could not be done, in sentences: the model is there all the same."""
    problems = []
    try:
        if facts.get("info"):
            _write(beside(model, ".civitai.info"), facts["info"])
        if facts.get("words") or facts.get("page"):
            _write(beside(model, ".json"), user_metadata(facts))
        if address := facts.get("preview"):
            preview = beside(model, ".preview.png")
            if not preview.exists():
                write_whole(preview, picture(reach, str(address), LONGEST_SIDE))
    except OSError as error:
        problems.append(f"its description was not saved: {disk_error(error).sentence}")
    except DownloadError as error:
        problems.append(f"its preview was not fetched: {error.sentence}")
    return problems


def user_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A1111's own file for what its user knows of a network; it reads the words from there."""
    base = str(facts.get("base_model") or "")
    family = next(
        (name for start, name in (("SD 1", "SD1"), ("SD 2", "SD2"), ("SDXL", "SDXL")) if base.startswith(start)), ""
    )
    licence = "; ".join(facts.get("licence") or ())
    return {
        "description": facts.get("description") or "",
        "sd version": family,
        "activation text": ", ".join(facts.get("words") or ()),
        "preferred weight": 0,
        "notes": "\n".join(filter(None, (str(facts.get("page") or ""), licence))),
    }


def picture(reach: Reach, address: str, longest: int) -> bytes:
    """A preview as a small PNG, through the one decoder. Raises DownloadError."""
    with reach.get(address) as answer:
        if answer.status != 200:
            raise DownloadError(f"there is no picture at its address ({answer.status})")
        data = answer.read(MOST_PICTURE + 1)
    if len(data) > MOST_PICTURE:
        raise DownloadError(f"the picture has more than {MOST_PICTURE >> 20} MiB")
    try:
        image = decode(data)
    except ImageError as error:
        raise DownloadError(str(error)) from None
    image.thumbnail((longest, longest))
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    if not path.exists():
        write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
