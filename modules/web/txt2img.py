"""The tab txt2img: its parameters, and the request that it makes of them."""

from typing import TYPE_CHECKING

import gradio as gr

from modules.web import parameters
from modules.web.checkpoints import defaults
from modules.web.filling import Wires
from modules.web.form import Form, request_from
from modules.web.hires import hires
from modules.web.parameters import Fields
from modules.web.workbench import workbench

if TYPE_CHECKING:
    from modules.app import App

TAB = "txt2img"


def txt2img_tab(app: "App", checkpoint: gr.Dropdown) -> tuple[Form, Wires]:
    return workbench(
        app, TAB, checkpoint, lambda: _parameters(app), "viewer", lambda values, ticket: [request_from(values)]
    )


def _parameters(app: "App") -> Fields:
    usual = defaults(app)
    fields = parameters.sampling(TAB, usual.sampling)
    fields |= parameters.size(TAB, usual.size)
    fields |= parameters.batch(TAB)
    fields |= parameters.guidance_and_seed(TAB, usual.sampling[3])
    fields |= hires(app, TAB)
    fields |= parameters.refiner(app, TAB)
    return fields
