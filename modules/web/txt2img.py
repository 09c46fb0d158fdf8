"""The tab txt2img: its form, and how it makes a request."""

from typing import TYPE_CHECKING

import gradio as gr

from modules.web import parameters
from modules.web.checkpoints import default_size
from modules.web.filling import Wires, bind_filling, make_wires
from modules.web.form import Form, request_from
from modules.web.hires import hires
from modules.web.parts import slot
from modules.web.styles import bind_applying, styles_row
from modules.web.submitting import bind_generate

if TYPE_CHECKING:
    from modules.app import App

TAB = "txt2img"


def txt2img_tab(app: "App", checkpoint: gr.Dropdown) -> tuple[Form, Wires]:
    with gr.Row(elem_id=f"{TAB}_panel", elem_classes=["workbench"]):
        with gr.Column(elem_id=f"{TAB}_settings", elem_classes=["settings"], min_width=0):
            fields = parameters.prompts(TAB)
            generate, paste = parameters.actions(TAB)
            with gr.Column(elem_classes=["parameters"], min_width=0):
                styles, apply = styles_row(app, TAB)
                fields |= styles
                fields |= parameters.override_settings(TAB)
                fields |= parameters.sampling(TAB)
                fields |= parameters.size(TAB, default_size(app))
                fields |= parameters.batch(TAB)
                fields |= parameters.guidance_and_seed(TAB)
                fields |= hires(app, TAB)
                fields |= parameters.refiner(app, TAB)
        slot("viewer", elem_id=f"{TAB}_results")
    form, wires = Form(TAB, fields | {"checkpoint": checkpoint}), make_wires(TAB)
    bind_generate(app, form, wires, generate, lambda values, ticket: [request_from(values)])
    bind_filling(app, form, wires, paste)
    bind_applying(app, form, apply)
    return form, wires
