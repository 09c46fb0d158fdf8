"""A1111's scripts as its API names them: those that are parts of Easel, with their arguments, and those that are not
here yet. A script that gets built leaves NOT_YET for SCRIPTS, and is answered for in the door that knows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.generation.request import CURVES
from modules.server.errors import field_error, shown

Mode = Literal["txt2img", "img2img"]


@dataclass(frozen=True)
class Argument:
    """One of a script's arguments, in their order. The default tells the type."""

    label: str
    value: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None
    by_place: bool = False  # its place among the choices may be given instead

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, if anything."""
        if isinstance(self.value, bool):
            return None if isinstance(value, bool) or value in (0, 1) else "must be true or false"
        if isinstance(self.value, str):
            if self.by_place and isinstance(value, int) and not isinstance(value, bool):
                return None
            return None if isinstance(value, str) else "must be text"
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        if self.minimum is not None and self.maximum is not None and not self.minimum <= value <= self.maximum:
            return f"must be from {self.minimum} to {self.maximum}"
        return None


@dataclass(frozen=True)
class Script:
    name: str
    modes: tuple[Mode, ...] = ("txt2img", "img2img")
    arguments: tuple[Argument, ...] = ()
    # Its fields are the API's own: A1111 looks at the arguments only when its page sends them.
    page_only: bool = False
    chosen: bool = False  # by `script_name`; the others are always on


SD_UPSCALE, LOOPBACK = "sd upscale", "loopback"
SOFT_INPAINTING = "soft inpainting"
SCRIPTS: tuple[Script, ...] = (
    Script("extra options"),
    Script(
        SOFT_INPAINTING,
        modes=("img2img",),
        arguments=(
            Argument("Soft inpainting", False),
            Argument("Schedule bias", 1, 0, 8, 0.1),
            Argument("Preservation strength", 0.5, 0, 8, 0.05),
            Argument("Transition contrast boost", 4, 1, 32, 0.5),
            Argument("Mask influence", 0, 0, 1, 0.05),
            Argument("Difference threshold", 0.5, 0, 8, 0.25),
            Argument("Difference contrast", 2, 0, 8, 0.25),
        ),
    ),
    Script(
        "refiner",
        arguments=(
            Argument("Refiner", False),
            Argument("Checkpoint", ""),
            Argument("Switch at", 0.8, 0.01, 1.0, 0.01),
        ),
        page_only=True,
    ),
    Script(
        "sampler",
        arguments=(
            Argument("Sampling steps", 20, 1, 150, 1),
            Argument("Sampling method", "DPM++ 2M", choices=tuple(info.name for info in SAMPLER_INFOS)),
            Argument("Schedule type", "Automatic", choices=tuple(info.label for info in SCHEDULE_INFOS)),
        ),
        page_only=True,
    ),
    Script(
        "seed",
        arguments=(
            Argument("Seed", -1),
            Argument("Extra", False),
            Argument("Variation seed", -1),
            Argument("Variation strength", 0.0, 0, 1, 0.01),
            Argument("Resize seed from width", 0, 0, 2048, 8),
            Argument("Resize seed from height", 0, 0, 2048, 8),
        ),
        page_only=True,
    ),
    Script(
        LOOPBACK,
        modes=("img2img",),
        arguments=(
            Argument("Loops", 4, 1, 32, 1),
            Argument("Final denoising strength", 0.5, 0, 1, 0.01),
            Argument("Denoising strength curve", "Linear", choices=CURVES),
            Argument("Append interrogated prompt at each iteration", "None", choices=("None", "CLIP", "DeepBooru")),
        ),
        chosen=True,
    ),
    Script(
        SD_UPSCALE,
        modes=("img2img",),
        arguments=(
            Argument("", ""),  # a text of A1111's page
            Argument("Tile overlap", 64, 0, 256, 16),
            Argument("Upscaler", "None", by_place=True),
            Argument("Scale Factor", 2.0, 1.0, 4.0, 0.05),
        ),
        chosen=True,
    ),
)
# To be chosen by `script_name`, as A1111 has them.
NOT_YET: Mapping[str, tuple[Mode, ...]] = {
    "prompt matrix": ("txt2img", "img2img"),
    "prompts from file or textbox": ("txt2img", "img2img"),
    "x/y/z plot": ("txt2img", "img2img"),
    "img2img alternative test": ("img2img",),
    "outpainting mk2": ("img2img",),
    "poor man's outpainting": ("img2img",),
}
NOT_YET_ALWAYS: tuple[str, ...] = ("hypertile",)


def scripts_of(mode: Mode) -> list[Script]:
    return [script for script in SCRIPTS if mode in script.modes]


def chosen(name: str | None, given: Any, mode: Mode) -> tuple[str, list[Any]] | None:
    """`script_name` and `script_args`: the script and all of its arguments; what is left out has its default. None: no
    script. Raises ApiError."""
    if name is None or name.casefold() in ("", "none"):
        return None
    known = name.casefold()
    script = next((one for one in SCRIPTS if one.name == known and one.chosen and mode in one.modes), None)
    if script is None:
        raise field_error("script_name", name, _why_not(name, mode))
    sent = _checked("script_args", given or [], script)
    return script.name, sent + [argument.value for argument in script.arguments[len(sent) :]]


def _why_not(name: str, mode: Mode) -> str:
    known, found = name.casefold(), {script.name: script for script in SCRIPTS}
    if mode in NOT_YET.get(known, ()):
        return f"the script {shown(name)!r} is not available here yet; leave it out"
    if known in found and not found[known].chosen:
        return f"{shown(name)!r} is always on; name it in alwayson_scripts instead"
    if known in NOT_YET or known in found:
        return f"the script {shown(name)!r} belongs to {(NOT_YET.get(known) or found[known].modes)[0]}"
    selectable = {**NOT_YET, **{script.name: script for script in SCRIPTS if script.chosen}}
    return f"Script {shown(name)!r} not found{_nearest(known, selectable)}"


def always_on(given: Mapping[str, Any], mode: Mode, warnings: list[str]) -> dict[str, list[Any]]:
    """`alwayson_scripts`: all arguments of the scripts that are named, by their names. What is left out has its
    default. Raises ApiError that names script and argument."""
    found: dict[str, list[Any]] = {}
    for name, wanted in given.items():
        script = _script(name, mode)
        sent = _sent(name, wanted, script)
        if script.page_only and sent != [argument.value for argument in script.arguments][: len(sent)]:
            warnings.append(f"the arguments of {script.name} have no effect over the API; its fields have")
        found[script.name] = sent + [argument.value for argument in script.arguments[len(sent) :]]
    return found


def _script(name: str, mode: Mode) -> Script:
    known = {script.name: script for script in scripts_of(mode) if not script.chosen}
    script = known.get(name.casefold())
    if script is not None:
        return script
    field = f"alwayson_scripts.{shown(name)}"
    if name.casefold() in NOT_YET or any(name.casefold() == script.name and script.chosen for script in SCRIPTS):
        raise field_error(field, None, "Cannot have a selectable script in the always on scripts params")
    if name.casefold() in NOT_YET_ALWAYS:
        raise field_error(field, None, f"the script {shown(name)!r} is not available here yet; leave it out")
    if any(name.casefold() == script.name for script in SCRIPTS):
        raise field_error(field, None, f"the script {shown(name)!r} is not one of {mode}")
    raise field_error(field, None, f"Script {shown(name)!r} not found{_nearest(name.casefold(), known)}")


def _sent(name: str, wanted: Any, script: Script) -> list[Any]:
    field = f"alwayson_scripts.{shown(name)}"
    if not isinstance(wanted, dict):
        raise field_error(field, wanted, 'must be an object such as {"args": [true]}')
    return _checked(f"{field}.args", wanted.get("args", []), script)


def _checked(field: str, sent: Any, script: Script) -> list[Any]:
    if not isinstance(sent, list):
        raise field_error(field, sent, "must be a list")
    if len(sent) > len(script.arguments):
        raise field_error(field, len(sent), f"{script.name} takes {len(script.arguments)} arguments at most")
    for index, (value, argument) in enumerate(zip(sent, script.arguments, strict=False)):
        if problem := argument.problem(value):
            raise field_error(f"{field}[{index}]", value, f"{argument.label} {problem}".strip())
    return sent


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe(mode: Mode) -> list[dict[str, Any]]:
    """For script-info."""
    return [
        {
            "name": script.name,
            "is_alwayson": not script.chosen,
            "is_img2img": mode == "img2img",
            "args": [
                {
                    "label": one.label,
                    "value": one.value,
                    "minimum": one.minimum,
                    "maximum": one.maximum,
                    "step": one.step,
                    "choices": list(one.choices) if one.choices else None,
                }
                for one in script.arguments
            ],
        }
        for script in scripts_of(mode)
    ]
