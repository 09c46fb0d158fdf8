"""The tab PNG Info: a picture is dropped, the server's one decoder reads its parameters (POST /sdapi/v1/png-info, asked
by js/png_info.js), and buttons send them and the picture to a form (js/sending.js)."""

import gradio as gr

from modules.web.parts import slot
from modules.web.text import text


def png_info_tab() -> None:
    with gr.Row(elem_classes=["workbench", "png-info"]):
        slot("png-info", elem_id="pnginfo_image")
        with gr.Column(elem_id="pnginfo_panel", min_width=0):
            gr.Textbox(
                label=text("parameters"),
                placeholder=text("parameters_hint"),
                lines=10,
                max_lines=30,
                elem_id="pnginfo_generation_info",
            )
            slot("send")
