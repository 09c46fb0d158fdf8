"""What lies beside a model file: A1111's own NAME.json, Civitai's NAME.civitai.info, NAME.txt, and a preview. All of it
was written by others: a broken or huge one is left out with a line in the log, and every text stays text."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from modules.library.header import printable

log = logging.getLogger(__name__)

MOST_BYTES = 2**20  # of a text beside a model
MOST_TEXT = 20_000  # characters of one text that are shown
MOST_WORDS = 200
PICTURES = ("png", "jpg", "jpeg", "webp", "avif")
CIVITAI = (".civitai.info", ".cm-info.json")  # of A1111's helpers, of StabilityMatrix
FIELDS = {  # ours: A1111's key in NAME.json
    "description": "description",
    "notes": "notes",
    "activation_text": "activation text",
    "negative_text": "negative text",
    "preferred_weight": "preferred weight",
    "sd_version": "sd version",
}


@dataclass(frozen=True)
class Notes:
    """What people wrote of a model."""

    description: str = ""
    notes: str = ""
    activation_text: str = ""  # what a card puts into the prompt
    negative_text: str = ""
    preferred_weight: float = 0.0  # 0: none is preferred
    sd_version: str = ""  # SD1, SD2, SDXL: as the user says, whatever the header tells
    title: str = ""
    words: tuple[str, ...] = ()  # that trigger it, by its author
    base_model: str = ""
    page: str = ""  # its address on Civitai


def beside(model: Path, ending: str) -> Path:
    """`x.preview.png` beside `x.safetensors`; beside a folder of diffusers, by the folder's whole name."""
    stem = model.name if model.is_dir() else model.stem
    return model.with_name(stem + ending)


def notes_of(model: Path) -> Notes:
    own = _read(beside(model, ".json"))
    info = next((found for ending in CIVITAI if (found := _read(beside(model, ending)))), {})
    told = _civitai(info)
    text = _text(own.get("description")) or told.description or _plain_file(beside(model, ".txt"))
    return Notes(
        description=text,
        notes=_text(own.get("notes")),
        activation_text=_text(own.get("activation text")),
        negative_text=_text(own.get("negative text")),
        preferred_weight=_number(own.get("preferred weight")),
        sd_version=_text(own.get("sd version"))[:20],
        title=told.title,
        words=told.words,
        base_model=told.base_model,
        page=told.page,
    )


def merged(model: Path, changes: Mapping[str, str | float]) -> bytes:
    """NAME.json with these changes, by our names; what else stands in it stays. Raises ValueError if what is there
    cannot be read: it would be lost."""
    path = beside(model, ".json")
    content: dict[str, Any] = {}
    if path.exists():
        content = _read(path)
        if not content and path.stat().st_size > 2:
            raise ValueError(f"{printable(path.name)} beside the model cannot be read; mend or remove it first")
    changed = {FIELDS[name]: value for name, value in changes.items()}
    return (json.dumps({**content, **changed}, indent=4, ensure_ascii=False) + "\n").encode("utf-8")


def preview_of(model: Path, names: frozenset[str] | None = None) -> Path | None:
    """The picture beside it, by A1111's names. `names`: of all files in its folder, where they are known."""
    if model.suffix.lower().lstrip(".") in PICTURES:
        return model  # an embedding that is a picture
    stem = beside(model, "").name
    for ending in ENDINGS:
        if names is None or stem + ending in names:
            path = model.with_name(stem + ending)
            if path.is_file():
                return path
    return None


ENDINGS = tuple(f"{before}.{suffix}" for before in ("", ".preview") for suffix in PICTURES)


def _civitai(info: Mapping[str, Any]) -> Notes:
    """Of a model's version as Civitai's API describes it, or as StabilityMatrix keeps it."""
    if not info:
        return Notes()
    model = info.get("model") if isinstance(info.get("model"), dict) else {}
    assert isinstance(model, dict)
    title = _text(model.get("name")) or _text(info.get("ModelName"))
    version = _text(info.get("name")) or _text(info.get("VersionName"))
    words = info.get("trainedWords") or info.get("TrainedWords") or []
    description = (
        _text(model.get("description")) or _text(info.get("description")) or _text(info.get("ModelDescription"))
    )
    id = info.get("modelId") or info.get("ModelId")
    return Notes(
        description=without_tags(description),
        title=" – ".join(part for part in (title, version) if part)[:200],
        words=tuple(_text(word)[:500] for word in words[:MOST_WORDS] if _text(word)) if isinstance(words, list) else (),
        base_model=(_text(info.get("baseModel")) or _text(info.get("BaseModel")))[:120],
        page=f"https://civitai.com/models/{id}" if isinstance(id, int) and 0 < id < 10**12 else "",
    )


def without_tags(text: str) -> str:
    """HTML as plain lines; what is no HTML stays as it is."""
    if "<" not in text:
        return text
    reader = _Lines()
    reader.feed(text)
    reader.close()
    lines = (line.strip() for line in "".join(reader.pieces).splitlines())
    return "\n".join(line for line in lines if line)


class _Lines(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._silent += tag in ("script", "style")
        self.pieces.append("\n" if tag in ("p", "br", "li", "div", "h1", "h2", "h3", "tr") else "")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style") and self._silent > 0

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)


def _read(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or it cannot be read."""
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s beside a model is left out: %s", printable(path.name), str(error)[:200])
        return {}
    return content


def _plain_file(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return ""
        return _text(path.read_bytes().decode("utf-8", "replace"))
    except OSError as error:
        log.warning("%s beside a model is left out: %s", printable(path.name), error.strerror or error)
        return ""


def _text(value: object) -> str:
    """A text of valid Unicode without control characters but line ends, cut where it is endless."""
    if not isinstance(value, str):
        return ""
    text = value[:MOST_TEXT].encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0.0
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) and abs(number) <= 1000 else 0.0
