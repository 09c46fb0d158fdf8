"""What an infotext says of a form: which of its boxes it fills, with what, and what of it means nothing here."""

from typing import TYPE_CHECKING, Any

from modules.generation import infotext
from modules.generation.reading import Reading, to_request_fields
from modules.settings.schema import SETTINGS, Settings
from modules.web.choices import upscalers
from modules.web.form import EXTRA, OVERRIDES, VARIATION, Problem, Values, checked, flat, sentence

if TYPE_CHECKING:
    from modules.app import App


def from_infotext(app: "App", written: str) -> tuple[Values, list[Problem]]:
    """A text without parameters is a prompt, and says nothing else."""
    settings = app.settings.current
    found = infotext.parse(written, settings.auto_backcompat)
    if "Steps" not in found:
        return {"prompt": written.strip()}, []

    def lora_name(digest: str) -> str | None:
        file = app.networks.by_hash("lora", digest)
        return app.networks.shown_name(file, settings.lora_preferred_name) if file else None

    reading = to_request_fields(
        found, settings.infotext_skip_pasting, app.styles(), settings.infotext_styles, lora_name
    )
    values, problems = checked(boxes_of(reading, settings), app.library)
    upscaler = values.get("hires.upscaler")
    if upscaler is not None and upscaler not in upscalers(app):
        problems.append(sentence(f"there is no upscaler {upscaler!r} here", "hires.upscaler"))
        del values["hires.upscaler"]
    return values, [*problems, *map(unmapped, reading.unmapped)]


def boxes_of(reading: Reading, settings: Settings) -> Values:
    """Parts that an infotext does not name were off."""
    values = flat({name: value for name, value in reading.fields.items() if name != "overrides"})
    values |= flat(reading.init, "init")
    if settings.disable_weights_auto_swap:
        values.pop("checkpoint", None)
    values |= {"hires": "hires" in reading.fields, "refiner": "refiner" in reading.fields}
    values[EXTRA] = any(name in reading.fields for name in VARIATION)
    values["init.mask.soft"] = "soft" in reading.init.get("mask", {})
    values[OVERRIDES] = [
        f"{SETTINGS[key].infotext}: {value}"
        for key, value in reading.fields.get("overrides", {}).items()
        if value != getattr(settings, key)
    ]
    return values


def unmapped(pair: str) -> Problem:
    return {"field": "", "kind": "unmapped", "limit": None, "got": pair, "text": f"not used: {pair}"}


def from_saved(app: "App", saved: dict[str, Any]) -> Values:
    """What a page held before it was loaded again; what cannot be any more is left out."""
    values, _ = checked(saved, app.library)
    if values.get("hires.upscaler") not in upscalers(app):
        values.pop("hires.upscaler", None)
    return values
