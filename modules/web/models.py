"""The tab Models: where models come from. Both halves are drawn by scripts when the tab is first opened: downloads by
js/downloads.js, from /api/v1/downloads."""

import gradio as gr

from modules.web.parts import slot


def models_tab() -> None:
    with gr.Column(elem_id="models_panel", elem_classes=["models"], min_width=0):
        slot("downloads")
