"""The tab PNG Info: a picture is dropped, the server's one decoder reads its parameters (POST /sdapi/v1/png-info, asked
by js/png_info.js), and a button sends them to the form of txt2img."""

from typing import TYPE_CHECKING

import gradio as gr

from modules.web.form import Form
from modules.web.generate import fill_from_infotext
from modules.web.parts import QUICK, slot
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App


def png_info_tab(app: "App", form: Form, reply: gr.Button, tabs: gr.Tabs) -> None:
    with gr.Row(elem_classes=["workbench", "png-info"]):
        slot("png-info", elem_id="pnginfo_image")
        with gr.Column(elem_id="pnginfo_panel", min_width=0):
            written = gr.Textbox(
                label=text("parameters"),
                placeholder=text("parameters_hint"),
                lines=10,
                max_lines=30,
                elem_id="pnginfo_generation_info",
            )
            send = gr.Button(text("send_to_txt2img"), variant="primary", elem_id="txt2img_tab", min_width=0)
    fill = fill_from_infotext(app)
    send.click(
        lambda text: [gr.Tabs(selected="txt2img"), *fill(text)], [written], [tabs, reply, *form.components()], **QUICK
    )
