"""The form of txt2img as data: its components, what their values mean as a GenerationRequest, and how they are filled
from a saved form or an infotext. Whatever fills it passes the request's own validation, field by field."""

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from pydantic import ValidationError

from modules.generation import infotext
from modules.generation.request import GenerationRequest
from modules.library.checkpoints import CheckpointLibrary, UnknownCheckpoint
from modules.library.header import ModelFileError

Problem = dict[str, Any]  # field, kind, limit, got, text: the page puts it into words of its language


@dataclass(frozen=True)
class Form:
    """The components that make a request, in the order in which their values reach Python."""

    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    sampler: gr.Dropdown
    schedule: gr.Dropdown
    steps: gr.Slider
    width: gr.Slider
    height: gr.Slider
    batch_count: gr.Slider
    batch_size: gr.Slider
    cfg_scale: gr.Slider
    seed: gr.Number
    checkpoint: gr.Dropdown

    def components(self) -> list[Any]:
        return [getattr(self, name) for name in NAMES]


NAMES = [field.name for field in fields(Form)]
WHOLE = ("steps", "width", "height", "batch_count", "batch_size", "seed")

INFOTEXT_KEYS = {  # ours: the infotext's
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
}


def request_from(values: dict[str, Any]) -> GenerationRequest:
    """An emptied box means its default."""
    return GenerationRequest(**{name: _number(name, value) for name, value in values.items() if value is not None})


def _number(name: str, value: Any) -> Any:
    """Browsers know one kind of number: 20.0 is the whole number 20. Anything else stays as it came."""
    return int(value) if name in WHOLE and isinstance(value, float) and value.is_integer() else value


def problems_of(error: ValidationError) -> list[Problem]:
    limits = ("ge", "le", "lt", "gt", "multiple_of", "max_length")
    return [
        {
            "field": str(one["loc"][0]) if one["loc"] else "",
            "kind": one["type"],
            "limit": next((value for key, value in one.get("ctx", {}).items() if key in limits), None),
            "got": str(one["input"])[:80] if one["loc"] else "",
            "text": one["msg"].removeprefix("Value error, "),
        }
        for one in error.errors()
    ]


def sentence(text: str, field: str = "") -> Problem:
    """A problem that is already in words."""
    return {"field": field, "kind": "sentence", "limit": None, "got": "", "text": text}


def checked(values: dict[str, Any], library: CheckpointLibrary) -> tuple[dict[str, Any], list[Problem]]:
    """The values that the form may take, one by one, and what is wrong with the others."""
    good: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            if name == "checkpoint":
                good[name] = library.find(str(value)).title
            elif name in NAMES:
                good[name] = getattr(GenerationRequest(**{name: _number(name, value)}), name)
        except ValidationError as error:
            problems += problems_of(error)
        except (UnknownCheckpoint, ModelFileError) as error:
            problems.append(sentence(str(error), name))
    return good, problems


def from_infotext(written: str) -> dict[str, Any]:
    """The form's fields that an infotext names, in their types where they can be read, else as they stand. A text
    without parameters is a prompt, and names nothing else."""
    found = infotext.parse(written)
    if "Steps" not in found:
        return {"prompt": written.strip()}
    values: dict[str, Any] = {ours: found[theirs] for ours, theirs in INFOTEXT_KEYS.items() if theirs in found}
    for name in (*WHOLE, "cfg_scale"):
        if name in values:
            values[name] = _read_number(str(values[name]))
    if checkpoint := found.get("Model hash") or found.get("Model"):
        values["checkpoint"] = checkpoint
    return values


def _read_number(written: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(written)
        except ValueError:
            continue
    return written
