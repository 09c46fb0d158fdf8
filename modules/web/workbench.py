"""A tab that makes pictures: its form on the left, with what all of them have (prompts, buttons, styles), the results
on the right, and its events."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import gradio as gr

from modules.web import parameters
from modules.web.filling import Wires, bind_filling, make_wires
from modules.web.form import Form
from modules.web.parameters import Fields
from modules.web.parts import slot
from modules.web.styles import bind_applying, styles_row
from modules.web.submitting import Requests, bind_generate

if TYPE_CHECKING:
    from modules.app import App


def workbench(
    app: "App", tab: str, checkpoint: gr.Dropdown, own: Callable[[], Fields], results: str, requests: Requests
) -> tuple[Form, Wires]:
    """`own` makes the tab's own parameters; `results` names the slot beside them; `requests` is told the form's values
    and the ticket."""
    with gr.Row(elem_id=f"{tab}_panel", elem_classes=["workbench"]):
        with gr.Column(elem_id=f"{tab}_settings", elem_classes=["settings"], min_width=0):
            fields = parameters.prompts(tab)
            generate, paste = parameters.actions(tab)
            with gr.Column(elem_classes=["parameters"], min_width=0):
                styles, apply = styles_row(app, tab)
                fields |= styles | parameters.override_settings(tab) | own()
        slot(results, elem_id=f"{tab}_results")
    form, wires = Form(tab, fields | {"checkpoint": checkpoint}), make_wires(tab)
    bind_generate(app, form, wires, generate, requests)
    bind_filling(app, form, wires, paste)
    bind_applying(app, form, wires, apply)
    return form, wires
