"""The form of a tab as data: its components by the fields of a request that they set ("hires.upscaler" is a path), what
their values mean as a request, and what they may be filled with. Knows no events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import BaseModel, ValidationError

from modules.generation.reading import to_request_fields
from modules.generation.request import GenerationRequest, Hires, Init, Mask, Refiner, SoftInpainting
from modules.library.checkpoints import CheckpointLibrary, UnknownCheckpoint
from modules.library.header import ModelFileError

Problem = dict[str, Any]  # field, kind, limit, got, text: the page puts it into words of its language
Values = dict[str, Any]

# Check boxes in the heads of parts: off leaves the part out of the request.
SWITCHES = ("hires", "refiner", "init.mask.soft")
VARIATION = ("variation_seed", "variation_strength", "seed_resize_width", "seed_resize_height")
EXTRA = "extra"  # the switch of VARIATION, which is no part of its own in a request
OVERRIDES = "override_settings"  # "Clip skip: 2", …

SAME = {  # what stands for "as in the first pass"
    "hires.checkpoint": "Use same checkpoint",
    "hires.sampler": "Use same sampler",
    "hires.schedule": "Use same scheduler",
}
WORDS = {  # what stands for no and yes
    "init.mask.invert": ("Inpaint masked", "Inpaint not masked"),
    "init.mask.only_masked": ("Whole picture", "Only masked"),
}
CHECKPOINTS = ("checkpoint", "hires.checkpoint", "refiner.checkpoint")

_PARTS: dict[str, tuple[type[BaseModel], Values]] = {  # with what they cannot be without
    "": (GenerationRequest, {}),
    "hires": (Hires, {}),
    "refiner": (Refiner, {"checkpoint": "any"}),
    "init": (Init, {"images": ("0" * 64,)}),
    "init.mask": (Mask, {"image": "0" * 64}),
    "init.mask.soft": (SoftInpainting, {}),
}


@dataclass(frozen=True)
class Form:
    """The components of a tab that make a request, in the order in which their values reach Python."""

    tab: str
    fields: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.fields)

    def components(self) -> list[Any]:
        return list(self.fields.values())

    def updates(self, values: Mapping[str, Any]) -> list[Any]:
        """For an event whose outputs are the components: the others stay as they are."""
        return [gr.update(value=values[name]) if name in values else gr.skip() for name in self.fields]

    def described(self) -> dict[str, dict[str, Any]]:
        """What the page's script must know to find each box, read it and set it back."""
        return {
            name: {"id": one.elem_id, "kind": kind_of(one), "value": one.value} for name, one in self.fields.items()
        }


def kind_of(component: Any) -> str:
    if isinstance(component, gr.Dropdown):
        return "choices" if component.multiselect else "choice"
    kinds = {gr.Textbox: "text", gr.Checkbox: "check", gr.Radio: "radio", gr.Slider: "number", gr.Number: "number"}
    return kinds[type(component)]


def request_from(values: Mapping[str, Any]) -> GenerationRequest:
    """An emptied box means its default."""
    return GenerationRequest(**nested(values))


def nested(values: Mapping[str, Any]) -> Values:
    """The request's arguments, without the parts that are switched off."""
    off = [f"{part}." for part in SWITCHES if not values.get(part)]
    fields: Values = {part: {} for part in SWITCHES if values.get(part) and "." not in part}
    for name, value in values.items():
        if value is None and name not in CHECKPOINTS:
            continue
        if name in (*SWITCHES, EXTRA, OVERRIDES) or name.startswith(tuple(off)):
            continue
        if name in VARIATION and not values.get(EXTRA, True):
            continue
        *parts, field = name.split(".")
        target = fields
        for part in parts:
            target = target.setdefault(part, {})
        target[field] = meant(name, value)
    if written := values.get(OVERRIDES):
        fields["overrides"] = overrides_from(written)
    return fields


def meant(name: str, value: Any) -> Any:
    """What the value of a box means in a request. Browsers know one kind of number: 20.0 is the whole number 20."""
    if name in CHECKPOINTS and value is None or name in SAME and value == SAME[name]:
        return ""
    if name in WORDS and value in WORDS[name]:
        return value == WORDS[name][1]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(name: str, value: Any) -> Any:
    """How a box shows what a request has."""
    if name in SAME:
        return value or SAME[name]
    if name in WORDS and isinstance(value, bool):
        return WORDS[name][value]
    return list(value) if isinstance(value, tuple) else value


def overrides_from(written: list[str]) -> Values:
    """Settings by their keys. Raises ValueError for what is none."""
    pairs = dict(one.partition(": ")[::2] for one in written)
    reading = to_request_fields({**pairs, "Steps": 1})
    if reading.unmapped:
        raise ValueError(f"these settings cannot be overridden: {'; '.join(reading.unmapped)}")
    found: Values = reading.fields["overrides"]
    return found


def problems_of(error: ValidationError, part: str = "") -> list[Problem]:
    limits = ("ge", "le", "lt", "gt", "multiple_of", "max_length")
    return [
        {
            "field": ".".join([*([part] if part else []), *(str(step) for step in one["loc"])]),
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


def checked(values: Mapping[str, Any], library: CheckpointLibrary) -> tuple[Values, list[Problem]]:
    """The values that a form may take, one by one as its boxes show them, and what is wrong with the others."""
    good: Values = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            if name in (*SWITCHES, EXTRA):
                good[name] = bool(value)
            elif name == OVERRIDES:
                good[name] = [str(one) for one in value] if isinstance(value, list) else []
            elif name in CHECKPOINTS and value and value != SAME.get(name):
                good[name] = library.find(str(value)).title
            else:
                good |= _checked(name, value)
        except ValidationError as error:
            problems += problems_of(error, name.rpartition(".")[0])
        except (UnknownCheckpoint, ModelFileError) as error:
            problems.append(sentence(str(error), name))
    return good, problems


def _checked(name: str, value: Any) -> Values:
    part, _, field = name.rpartition(".")
    if part not in _PARTS or (part, field) == ("", "save"):
        return {}
    model, needed = _PARTS[part]
    if field not in model.model_fields:
        return {}
    return {name: shown(name, getattr(model(**needed | {field: meant(name, value)}), field))}


def flat(fields: Mapping[str, Any], part: str = "") -> Values:
    """A request's arguments by their paths."""
    found: Values = {}
    for name, value in fields.items():
        path = f"{part}.{name}" if part else name
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
