"""The header's quick settings: those that quicksettings_list names, changed for everyone at once. The checkpoint is
always there (checkpoints.py)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.settings.schema import SETTINGS, SettingError, SettingInfo, refuse_protected
from modules.web.choices import vaes
from modules.web.filling import reply
from modules.web.form import sentence
from modules.web.parts import QUICK
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App

CHECKPOINT = "sd_model_checkpoint"
USUAL = ("sd_vae", "CLIP_stop_at_last_layers")  # where nobody chose otherwise
NAMES = {"sd_vae": "vae", "CLIP_stop_at_last_layers": "clip_skip"}  # that have a word of their own


def quick_settings(app: "App") -> dict[str, Any]:
    return {key: _component(app, SETTINGS[key]) for key in shown_keys(app.settings.current.quicksettings_list)}


def shown_keys(chosen: list[str]) -> list[str]:
    """Without the checkpoint; unknown settings, and those that only config.json may set, are left out."""
    keys = USUAL if chosen == SETTINGS["quicksettings_list"].default else dict.fromkeys(chosen)
    known = [SETTINGS[key] for key in keys if key in SETTINGS and key != CHECKPOINT]
    return [info.key for info in known if not (info.path or info.security or info.secret)]


def bind_quick_settings(app: "App", components: dict[str, Any], answer: gr.Button) -> None:
    for key, component in components.items():
        event = component.change if isinstance(component, gr.Checkbox) else component.input
        event(_setter(app, key), [component], [answer], **QUICK)


def _component(app: "App", info: SettingInfo) -> Any:
    value = getattr(app.settings.current, info.key)
    more: dict[str, Any] = {
        "label": text(NAMES[info.key]) if info.key in NAMES else info.help.rstrip("."),
        "elem_id": f"setting_{info.key}",
        "elem_classes": ["quick"],
        "min_width": 0,
    }
    if info.key == "sd_vae":
        return gr.Dropdown(vaes(app), value=value, allow_custom_value=True, **more)
    if info.type == "bool":
        return gr.Checkbox(value, **more)
    if info.type == "list" or info.choices:
        return gr.Dropdown(list(info.choices or value), value=value, multiselect=info.type == "list", **more)
    if info.type in ("int", "float"):
        precision = 0 if info.type == "int" else None
        limits = {"minimum": info.minimum, "maximum": info.maximum, "step": info.step or 1}
        return gr.Number(value, precision=precision, **limits, **more)
    return gr.Textbox(value, lines=1, **more)


def _setter(app: "App", key: str) -> Callable[[Any], Any]:
    def set_it(value: Any) -> Any:
        try:
            refuse_protected({key: value})
            if value is not None and value != getattr(app.settings.current, key):
                app.settings.update({key: value})
        except (SettingError, OSError) as error:
            return reply([sentence(str(error), f"setting.{key}")])
        return gr.skip()

    return set_it
