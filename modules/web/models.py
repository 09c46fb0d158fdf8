"""The tab Models: which there are, and where they come from. Both halves are drawn by scripts when the tab is first
opened: the cards by js/browser.js, from /api/v1/models, and downloads by js/downloads.js, from /api/v1/downloads."""

import gradio as gr

from modules.web.parts import slot


def models_tab() -> None:
    with gr.Column(elem_id="models_panel", elem_classes=["models"], min_width=0):
        slot("browser")
        slot("downloads")
