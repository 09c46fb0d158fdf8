"""An infotext in the making, from whatever a program kept: fields by A1111's names, and sentences about the rest."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modules.generation.foreign.names import sampler_of, schedule_of
from modules.generation.infotext import in_order, write
from modules.generation.request import MAX_PROMPT

MAX_JSON = 4 * 2**20  # characters
MAX_NOTES = 50
MAX_LORAS = 50

_FIXED: tuple[str, ...] = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model hash",
    "Model",
    "VAE",
)
_FIXED += ("Variation seed", "Variation seed strength", "Denoising strength", "Clip skip", "ENSD", "RNG", "Tiling")


@dataclass(frozen=True)
class Foreign:
    """A picture of another program: as an infotext, and what could not be said in one."""

    program: str
    infotext: str
    unmapped: tuple[str, ...]


def load(text: str | None) -> Any:
    """The JSON value; None where there is none, or more than we read."""
    if not text or len(text) > MAX_JSON or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def load_object(text: str | None) -> dict[str, Any]:
    value = load(text)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> int | float:
    """Whole where it is whole, else with four places. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,20}(\.\d{1,20})?\s*", value, re.ASCII):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e20 < value < 1e20:
        raise ValueError("is no number")
    return int(value) if float(value).is_integer() else round(value, 4)


def whole(value: Any) -> int:
    found = number(value)
    if not isinstance(found, int):
        raise ValueError("is no whole number")
    return found


def line(value: Any) -> str:
    """A name: text on one line. Raises ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is no text")
    return " ".join(value[:300].split())


def stem(name: Any) -> str:
    """ "x" of "folder\\x.safetensors"."""
    return re.sub(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$", "", re.split(r"[/\\]", line(name))[-1], flags=re.I)


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


class Draft:
    def __init__(self, program: str, version: Any = None):
        self.program = program
        self.prompt = self.negative = ""
        self.fields: dict[str, object] = {}
        self._notes: dict[str, None] = {}
        self._loras: list[str] = []
        self._version = f"{program} {shown(version)}" if isinstance(version, str) and version else program

    def set(self, name: str, value: Any, convert: Callable[[Any], object] = number) -> None:
        """None says nothing; what cannot be read is noted."""
        if value is None:
            return
        try:
            self.fields[name] = convert(value)
        except ValueError as error:
            self.note(f"{name}: {shown(value)} ({error})")

    def take(self, source: dict[str, Any], key: str, name: str, convert: Callable[[Any], object] = number) -> None:
        """Out of `source`, so that at the end it holds what nobody took."""
        self.set(name, source.pop(key, None), convert)

    def size(self, width: Any, height: Any) -> None:
        if width is None or height is None:
            return
        try:
            self.fields["Size"] = f"{whole(width)}x{whole(height)}"
        except ValueError as error:
            self.note(f"Size: {shown(width)} × {shown(height)} ({error})")

    def sampler(self, name: Any, schedule: Any = None, prefix: str = "") -> None:
        """Both by any program's names. `prefix` is "Hires " for a second pass."""
        sampler_field, schedule_field = (
            ("Hires sampler", "Hires schedule type") if prefix else ("Sampler", "Schedule type")
        )
        if isinstance(name, str) and name:
            sampler, inside = sampler_of(name)
            if sampler:
                self.fields[sampler_field] = sampler
            else:
                self.note(f"{sampler_field}: {shown(name)} (not known here)")
            if inside:
                self.fields[schedule_field] = inside
        if isinstance(schedule, str) and schedule:
            if found := schedule_of(schedule):
                self.fields[schedule_field] = found
            else:
                self.note(f"{schedule_field}: {shown(schedule)} (not known here)")

    def lora(self, name: Any, weight: Any = 1, text_weight: Any = None) -> None:
        """A tag of the prompt; the text encoder's weight only where it is another one."""
        try:
            tag, weight = stem(name), number(weight)
            both = weight if text_weight is None else number(text_weight)
        except ValueError as error:
            self.note(f"LoRA {shown(name)}: {shown(weight)} ({error})")
            return
        if any(mark in tag for mark in "<>:") or len(self._loras) >= MAX_LORAS:
            self.note(f"LoRA {shown(name)}: {weight} (cannot be named in a prompt)")
        else:
            self._loras.append(f"<lora:{tag}:{weight}>" if both == weight else f"<lora:{tag}:{both}:{weight}>")

    def note(self, sentence: str) -> None:
        if len(self._notes) < MAX_NOTES:
            self._notes[sentence] = None

    def note_rest(self, source: Mapping[str, Any], silent: tuple[str, ...] = ()) -> None:
        """What nobody took, but for what says nothing."""
        for key, value in source.items():
            if key not in silent and value not in (None, "", False, 0, [], {}):
                self.note(f"{key[:80]}: {shown(value)}")

    def finish(self) -> Foreign:
        prompt, negative = (self._cut(text) for text in (self.prompt, self.negative))
        tags = "".join(tag for tag in self._loras if tag not in prompt)
        prompt = f"{prompt} {tags}".strip() if tags else prompt
        known = {name: self.fields[name] for name in _FIXED if name in self.fields}
        known |= in_order({name: value for name, value in self.fields.items() if name not in known})
        if len(known) >= 2:
            return Foreign(
                self.program, write(prompt, negative, known | {"Version": self._version}), tuple(self._notes)
            )
        for name, value in known.items():  # too few for a line of parameters
            self.note(f"{name}: {shown(str(value))}")
        text = f"{prompt}\nNegative prompt: {negative}" if negative else prompt
        return Foreign(self.program, text, tuple(self._notes))

    def _cut(self, text: str) -> str:
        """Lines of a prompt must not look like what an infotext has between its parts."""
        if len(text) > MAX_PROMPT:
            self.note(f"the prompt is longer than {MAX_PROMPT} characters; the rest is left out")
        text = text[:MAX_PROMPT].replace("\r\n", "\n").replace("\r", "\n").strip()
        return re.sub(r"^\s*Negative prompt:", "negative prompt:", text, flags=re.M)
