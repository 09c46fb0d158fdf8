"""Events that fill a form: from an infotext, and from what its page held before. The answer to the page's script (what
could not be taken) travels in the tab's reply."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.web.choices import checkpoints, upscalers
from modules.web.choices import styles as style_names
from modules.web.form import Form, Problem
from modules.web.parts import QUICK, wire_in, wire_out
from modules.web.pasting import from_infotext, from_saved

if TYPE_CHECKING:
    from modules.app import App


@dataclass(frozen=True)
class Wires:
    """Between a tab and the page's script."""

    ticket: gr.Textbox
    reply: gr.Button
    saved: gr.Textbox
    restore: gr.Button


def make_wires(tab: str) -> Wires:
    restore = gr.Button("", elem_id=f"{tab}_restore", elem_classes=["wire"])
    return Wires(wire_in(f"{tab}_ticket"), wire_out(f"{tab}_reply"), wire_in(f"{tab}_saved"), restore)


def bind_filling(app: "App", form: Form, wires: Wires, paste: gr.Button) -> None:
    outputs = [wires.reply, *form.components()]
    fill = filler(app, form)
    paste.click(lambda written: fill(written or app.last_infotext()), [form.fields["prompt"]], outputs, **QUICK)
    wires.restore.click(_restorer(app, form), [wires.saved], outputs, **QUICK)


def filler(app: "App", form: Form) -> Callable[..., list[Any]]:
    """Fills the form from an infotext; what it does not name stays as it is."""

    def fill(written: str, size: Sequence[int] | None = None, without: Sequence[str] = ()) -> list[Any]:
        """`size` is a sent picture's own, which counts for more; fields of `without` stay as they are."""
        values, problems = from_infotext(app, written) if written else ({}, [])
        if size:
            values["width"], values["height"] = size
        values = {name: value for name, value in values.items() if name not in without}
        return [reply(problems=problems), *form.updates(values)]

    return fill


def _restorer(app: "App", form: Form) -> Callable[[str], list[Any]]:
    fill = filler(app, form)

    def restore(saved: str) -> list[Any]:
        """Sent once by every page that opens a tab: it brings back the tab's own form, and today's lists."""
        boxes = json.loads(saved or "{}")
        if "infotext" in boxes:  # a picture's own parameters, sent by the viewer's buttons
            return fill(boxes["infotext"], boxes.get("size"), boxes.get("without", ()))
        values = from_saved(app, boxes)
        titles, selected = checkpoints(app)
        values.setdefault("checkpoint", selected)
        lists = {
            "checkpoint": titles,
            "hires.checkpoint": ["Use same checkpoint", *titles],
            "hires.upscaler": upscalers(app),
            "refiner.checkpoint": titles,
            "styles": style_names(app),
        }
        updates = dict(zip(form.names, form.updates(values), strict=True))
        for name, choices in lists.items():
            if name in form.fields:
                chosen = {"value": values[name]} if name in values else {}
                updates[name] = gr.update(choices=choices, **chosen)
        return [reply(), *updates.values()]

    return restore


def reply(problems: list[Problem] | None = None, **answer: Any) -> Any:
    """No two are the same text: the script looks for changes."""
    return gr.update(value=json.dumps({"problems": problems or [], **answer, "n": token_hex(4)}))
