"""Names of pictures: A1111's patterns such as [seed]-[prompt_spaces], made safe for every file system. Knows no folders
but to see which numbers are taken."""

import hashlib
import os
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from PIL import Image

MAX_NAME_BYTES = 200
MAX_PART = 128  # characters of one value in a name, as in A1111
MAX_EXPANDED = 4000  # characters
MAX_FOLDERS = 8


@dataclass(frozen=True)
class NamingFacts:
    """What patterns may say about one picture."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    cfg_scale: float
    width: int
    height: int
    sampler: str
    schedule: str
    model_name: str
    model_hash: str
    clip_skip: int = 1
    batch_size: int = 1
    batch_index: int = 0  # within its batch
    batch_count: int = 1
    image_index: int = 0  # within the job
    first_seed: int | None = None  # of the batch; None: seed
    last_seed: int | None = None
    denoising_strength: float | None = None
    prompt_without_styles: str | None = None
    styles: tuple[str, ...] = ()
    vae: str | None = None
    user: str | None = None
    job_timestamp: str | None = None


class _Skip:
    """A value that is empty and takes the text before it away too."""


_SKIP = _Skip()


def expand(
    pattern: str, facts: NamingFacts, now: datetime, image: Image.Image | None = None, max_words: int = 8
) -> str:
    """The text that A1111 makes of the pattern: not yet a safe name. What is unknown stays as it stands."""
    found: list[str] = []
    position = 0
    for match in re.finditer(r"\[([^\[\]]+)\]", pattern[:MAX_EXPANDED]):
        between = pattern[position : match.start()]
        position = match.end()
        name, *arguments = match[1].replace(">", "").split("<")
        context = _Context(facts, now, image, max_words, arguments)
        make = _VALUES.get(name.lower())
        value = make(context) if make else None
        if isinstance(value, _Skip):
            continue
        found += [between, f"[{name}]" if value is None else value]
        if sum(map(len, found[-2:])) + len(found) > MAX_EXPANDED:
            break
    found.append(pattern[position:])
    return "".join(found)[:MAX_EXPANDED]


def sanitize(text: str, replace_spaces: bool = True) -> str:
    """One value as part of a name, as A1111 writes it: at most 128 characters without any that file systems refuse."""
    text = text.lstrip(" ") if not replace_spaces else text
    text = text[: MAX_PART * 2].replace(" ", "_") if replace_spaces else text
    return text.translate(_REPLACE)[:MAX_PART].rstrip(" .")


def safe_name(text: str, limit: int = MAX_NAME_BYTES) -> str:
    """A name for one file or folder, legal on Linux, macOS and Windows, at most `limit` bytes long; "" where nothing
    is left. It has no separator and is never "." or ".."."""
    text = text.encode("utf-8", "replace").decode("utf-8").translate(_REPLACE | _HIDDEN).strip(" ").rstrip(" .")
    text = text.encode("utf-8")[:limit].decode("utf-8", "ignore").rstrip(" .")
    if text.startswith("."):
        text = "_" + text[1:]
    if text.split(".")[0].rstrip(" ").upper() in _RESERVED:
        text = "_" + text[: limit - 1]
    return text


def safe_folders(text: str) -> tuple[str, ...]:
    """The folders that an expanded pattern names; always below where it starts."""
    parts = [safe_name(part, 100) for part in re.split(r"[/\\]", text)]
    return tuple(part for part in parts if part)[:MAX_FOLDERS]


def next_number(folder: Path, prefix: str = "") -> int:
    """One more than the highest number that a file there starts with, after the prefix."""
    highest = -1
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and not entry.is_dir(follow_symlinks=False):
                stem = entry.name[len(prefix) :].split(".")[0]
                match = re.match(r"\d{1,9}(?=-|_|$)", stem, re.ASCII)
                highest = max(highest, int(match[0])) if match else highest
    return highest + 1


@dataclass(frozen=True)
class _Context:
    facts: NamingFacts
    now: datetime
    image: Image.Image | None
    max_words: int
    arguments: list[str]

    def digits(self, default: int | None = None) -> int | None:
        """The length of a hash that the pattern asks for."""
        first = self.arguments[0] if self.arguments else ""
        return int(first) if re.fullmatch(r"\d{1,2}", first, re.ASCII) else default


_REPLACE = {ord(c): "_" for c in '<>:"/\\|?*\x7f'} | {code: "_" for code in range(32)}
_HIDDEN = {code: "" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C, 0xFEFF)}
_HIDDEN |= {code: "_" for code in (*range(0x80, 0xA0), 0x2028, 0x2029)}
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"
}
_WORDS = re.compile(rf"[^\s{re.escape(string.punctuation)}]+")


def _words(context: _Context) -> str:
    words = []
    for match in _WORDS.finditer(context.facts.prompt):
        words.append(match[0])
        if len(words) == context.max_words:
            break
    return sanitize(" ".join(words or ["empty"]), replace_spaces=False)


def _has_prompt(context: _Context) -> str | None:
    if not context.arguments:
        return None
    prompt, result = context.facts.prompt.lower(), ""
    for argument in context.arguments:
        wanted, _, default = argument.partition("|")
        result += wanted if wanted.lower() in prompt else default
    return sanitize(result)


def _image_hash(context: _Context) -> str | None:
    if context.image is None:
        return None
    return hashlib.sha256(context.image.tobytes()).hexdigest()[: context.digits()]


def _datetime(context: _Context) -> str:
    arguments = [argument for argument in context.arguments if argument]
    moment = context.now
    if len(arguments) > 1:
        try:
            moment = context.now.astimezone(ZoneInfo(arguments[1]))
        except (KeyError, ValueError, OSError):  # no such time zone: local time
            pass
    layout = arguments[0] if arguments else _TIMESTAMP
    if len(layout) > 100 or re.search(r"%[^A-Za-z%]*\d", layout):  # %99999999d would be that long
        layout = _TIMESTAMP
    try:
        text = moment.strftime(layout)
    except ValueError:  # a layout that this platform refuses
        text = moment.strftime(_TIMESTAMP)
    return sanitize(text, replace_spaces=False)


_TIMESTAMP = "%Y%m%d%H%M%S"


def _hash(text: str, context: _Context) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[: context.digits(8)]


_Value = str | _Skip | None
_VALUES: Mapping[str, Callable[[_Context], _Value]] = {
    "seed": lambda c: str(c.facts.seed),
    "seed_first": lambda c: str(c.facts.seed if c.facts.first_seed is None else c.facts.first_seed),
    "seed_last": lambda c: str(c.facts.seed if c.facts.last_seed is None else c.facts.last_seed),
    "steps": lambda c: str(c.facts.steps),
    "cfg": lambda c: str(c.facts.cfg_scale),
    "width": lambda c: str(c.facts.width),
    "height": lambda c: str(c.facts.height),
    "styles": lambda c: sanitize(", ".join(c.facts.styles) or "None", replace_spaces=False),
    "sampler": lambda c: sanitize(c.facts.sampler, replace_spaces=False),
    "scheduler": lambda c: sanitize(c.facts.schedule, replace_spaces=False),
    "sampler_scheduler": lambda c: sanitize(f"{c.facts.sampler} {c.facts.schedule}", replace_spaces=False),
    "model_hash": lambda c: c.facts.model_hash,
    "model_name": lambda c: sanitize(c.facts.model_name, replace_spaces=False),
    "date": lambda c: c.now.strftime("%Y-%m-%d"),
    "datetime": _datetime,
    "job_timestamp": lambda c: c.facts.job_timestamp,
    "prompt_hash": lambda c: _hash(c.facts.prompt, c),
    "negative_prompt_hash": lambda c: _hash(c.facts.negative_prompt, c),
    "full_prompt_hash": lambda c: _hash(f"{c.facts.prompt} {c.facts.negative_prompt}", c),
    "prompt": lambda c: sanitize(c.facts.prompt),
    "prompt_spaces": lambda c: sanitize(c.facts.prompt, replace_spaces=False),
    "prompt_no_styles": lambda c: sanitize(
        c.facts.prompt if c.facts.prompt_without_styles is None else c.facts.prompt_without_styles, replace_spaces=False
    ),
    "prompt_words": _words,
    "hasprompt": _has_prompt,
    "clip_skip": lambda c: str(c.facts.clip_skip),
    "denoising": lambda c: _SKIP if c.facts.denoising_strength is None else str(c.facts.denoising_strength),
    "batch_size": lambda c: str(c.facts.batch_size),
    "batch_number": lambda c: _SKIP if c.facts.batch_size == 1 else str(c.facts.batch_index + 1),
    "generation_number": lambda c: (
        _SKIP if c.facts.batch_size * c.facts.batch_count == 1 else str(c.facts.image_index + 1)
    ),
    "user": lambda c: None if c.facts.user is None else sanitize(c.facts.user, replace_spaces=False),
    "vae_filename": lambda c: sanitize(c.facts.vae or "NoneType", replace_spaces=False),
    "none": lambda c: _SKIP,
    "image_hash": _image_hash,
}
