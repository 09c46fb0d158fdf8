"""The page: builds the Gradio app from its tabs and mounts it at "/" behind the shell. Called once, by webui.py, after
all other routes, because a mount at "/" answers whatever nobody else does."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.runtime.version import VERSION
from modules.web.checkpoints import bind_checkpoint_choice, checkpoint_choice
from modules.web.form import Form
from modules.web.img2img import img2img_tab
from modules.web.merger import merger_tab
from modules.web.models import models_tab
from modules.web.parts import slot
from modules.web.png_info import png_info_tab
from modules.web.quicksettings import bind_quick_settings, quick_settings
from modules.web.shell import Shell
from modules.web.styles import styles_dialog
from modules.web.text import text
from modules.web.txt2img import txt2img_tab

if TYPE_CHECKING:
    from modules.app import App

FONTS = ["Inter", "system-ui", "sans-serif"]  # names only: nothing is fetched for them
MONO = ["ui-monospace", "monospace"]


def mount_page(api: Any, app: "App") -> None:
    """Mounts the page in a FastAPI app (typed loosely: only the server knows FastAPI)."""
    blocks, forms = build_page(app)
    gr.mount_gradio_app(
        api,
        blocks,
        "/",
        theme=gr.themes.Base(font=FONTS, font_mono=MONO),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        pwa=False,
        enable_monitoring=False,
    )
    mounted = api.routes[-1]
    mounted.app = Shell(mounted.app, app, {form.tab: form.described() for form in forms})


def build_page(app: "App") -> tuple[gr.Blocks, list[Form]]:
    with gr.Blocks(title="Easel", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="quicksettings"):
            slot("brand")
            checkpoint, refresh = checkpoint_choice(app)
            with gr.Row(elem_classes=["quick-settings"]):
                quick = quick_settings(app)
            slot("status")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("txt2img", id="txt2img", elem_id="tab_txt2img"):
                form, wires = txt2img_tab(app, checkpoint)
            with gr.Tab("img2img", id="img2img", elem_id="tab_img2img"):
                img2img, _ = img2img_tab(app, checkpoint)
            with gr.Tab("PNG Info", id="pnginfo", elem_id="tab_pnginfo"):
                png_info_tab()
            with gr.Tab(text("models.tab"), id="models", elem_id="tab_models"):
                models_tab()
            with gr.Tab(text("merger"), id="modelmerger", elem_id="tab_modelmerger"):
                merger_tab(app)
        forms = [form, img2img]
        styles_dialog(app, forms)
        bind_checkpoint_choice(app, forms, refresh, quick.get("sd_vae"), wires.reply)
        bind_quick_settings(app, quick, wires.reply)
    blocks.app_id = fingerprint(blocks)
    return blocks, forms


def fingerprint(blocks: gr.Blocks) -> int:
    """Names this page by what it is made of. Gradio picks a random number at each start, and open pages reload when it
    changes; ours go on where they are after a restart, unless the page is another one by then."""
    config = blocks.get_config_file()
    made_of = json.dumps([VERSION, config["layout"], config["dependencies"]], default=str, sort_keys=True)
    return int(hashlib.sha256(made_of.encode()).hexdigest()[:12], 16)
