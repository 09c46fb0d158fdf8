"""The small pieces that every tab is made of. Gradio only; no events, no state. Markup of ours lives in html/ and
reaches the page as <template>s (shell.py), because gr.HTML would evaluate strings as script, which a strict policy
forbids."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from modules.web.text import text

# How our events run: at once, beside Gradio's queue, without its spinners, and not as a public API.
# Of what is asked while an answer is on its way Gradio would drop all; here the last is asked for when it came.
QUICK: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "always_last",
}
EACH = QUICK | {"trigger_mode": "multiple"}  # for what must not be lost: every one is sent at once


def icon_button(label: str, icon: str, elem_id: str, **more: Any) -> gr.Button:
    """A square button that shows an icon of css/icons.css; its words stay in the page as the accessible name."""
    more.setdefault("min_width", 0)
    return gr.Button(text(label), elem_id=elem_id, elem_classes=["icon-button", f"icon-{icon}"], **more)


def slider(label: str, elem_id: str, low: float, high: float, value: float, step: float, **more: Any) -> gr.Slider:
    return gr.Slider(low, high, value, step=step, label=text(label), elem_id=elem_id, buttons=[], min_width=0, **more)


def dropdown(label: str, elem_id: str, choices: Sequence[str], value: Any, **more: Any) -> gr.Dropdown:
    return gr.Dropdown(list(choices), value=value, label=text(label), elem_id=elem_id, min_width=0, **more)


def radio(label: str, elem_id: str, choices: Sequence[str], value: str, **more: Any) -> gr.Radio:
    return gr.Radio(list(choices), value=value, label=text(label), elem_id=elem_id, min_width=0, **more)


def slot(name: str, elem_id: str | None = None) -> gr.Column:
    """An empty place, which the page's script fills with the template html/<name>.html."""
    with gr.Column(elem_id=elem_id, elem_classes=["slot", f"slot-{name}"], min_width=0) as column:
        pass
    return column


@contextmanager
def switched(label: str, elem_id: str, box_id: str | None = None, on: bool = False) -> Iterator[gr.Checkbox]:
    """A part of the form that is on and open, or off and shut, by the box in its head (css/6_parts.css). A1111 names
    most of these boxes after their parts."""
    with gr.Column(elem_id=elem_id, elem_classes=["switched"], min_width=0):
        box = gr.Checkbox(
            on,
            label=text(label),
            elem_id=box_id or f"{elem_id}-checkbox",
            elem_classes=["switch"],
            min_width=0,
            interactive=True,
        )
        with gr.Column(elem_classes=["switched-body"], min_width=0):
            yield box


def wire_in(elem_id: str) -> gr.Textbox:
    """An unseen box through which the page's script hands data to a Gradio event."""
    return gr.Textbox(elem_id=elem_id, elem_classes=["wire"], show_label=False, container=False)


def wire_out(elem_id: str) -> gr.Button:
    """An unseen button whose caption carries an event's answer to the page's script: always text, never markup."""
    return gr.Button("", elem_id=elem_id, elem_classes=["wire"], interactive=False)
