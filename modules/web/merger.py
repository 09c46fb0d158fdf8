"""The tab Checkpoint Merger: its boxes, by A1111's ids, and the lists that they offer. js/merger.js reads them, sends
them to POST /api/v1/merges and shows how the merge goes."""

import json
from typing import TYPE_CHECKING, Any, get_args

import gradio as gr

from modules.jobs.merges import shared_metadata
from modules.library.checkpoints import Checkpoint, UnknownCheckpoint
from modules.library.header import ModelFileError, read_header
from modules.library.recipes import ConfigFrom, Method
from modules.library.vaes import NONE
from modules.web.choices import titles
from modules.web.parts import QUICK, dropdown, icon_button, radio, slider, slot, switched
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App

MODELS = {"primary": "A", "secondary": "B", "tertiary": "C"}
USED: dict[str, Any] = {"interactive": True}  # Gradio would lock what no event of its own reads
MOST_SHOWN = 20_000  # characters of one value of the metadata: previews are longer, and nobody edits them


def merger_tab(app: "App") -> None:
    with gr.Row(elem_id="modelmerger_panel", elem_classes=["workbench", "merger"]):
        with gr.Column(elem_id="modelmerger_settings", elem_classes=["settings"], min_width=0):
            with gr.Column(elem_classes=["parameters"], min_width=0):
                models, buttons = _models(app)
                _how()
                vae, more_vaes = _result(app)
                metadata, read = _metadata()
            with gr.Row(elem_classes=["actions"]):
                gr.Button(
                    text("merge.merge"),
                    variant="primary",
                    elem_id="modelmerger_merge",
                    elem_classes=["generate"],
                    min_width=0,
                )
                gr.Button(text("merge.cancel"), elem_id="modelmerger_cancel", elem_classes=["quiet"], min_width=0)
        slot("merger", elem_id="modelmerger_results")
    for button in buttons:
        button.click(lambda: _checkpoints(app), None, models, **QUICK)
    more_vaes.click(lambda: gr.update(choices=_vaes(app, refresh=True)), None, [vae], **QUICK)
    read.click(lambda *chosen: metadata_text(app, chosen), models, [metadata], **QUICK)


def _models(app: "App") -> tuple[list[gr.Dropdown], list[gr.Button]]:
    """A title grows a hash meanwhile, hence custom values; the library knows both, and refuses all else."""
    models, buttons = [], []
    for name, letter in MODELS.items():
        with gr.Row(elem_classes=["with-button", f"model-{letter.lower()}"]):
            id = f"modelmerger_{name}_model_name"
            models.append(dropdown(f"merge.{name}", id, titles(app), None, allow_custom_value=True, **USED))
            buttons.append(icon_button("refresh_checkpoints", "refresh", f"refresh_checkpoint_{letter}"))
    return models, buttons


def _how() -> None:
    radio("merge.method", "modelmerger_interp_method", get_args(Method), "Weighted sum", **USED)
    slider("merge.multiplier", "modelmerger_interp_amount", 0, 1, 0.3, 0.05, **USED)


def _result(app: "App") -> tuple[gr.Dropdown, gr.Button]:
    gr.Textbox(
        label=text("merge.name"),
        placeholder=text("merge.name_hint"),
        lines=1,
        max_lines=1,
        elem_id="modelmerger_custom_name",
        **USED,
    )
    with gr.Row(elem_classes=["boxes"]):
        gr.Checkbox(False, label=text("merge.half"), elem_id="modelmerger_save_as_half", min_width=0, **USED)
        gr.Checkbox(False, label=text("merge.overwrite"), elem_id="modelmerger_overwrite", min_width=0, **USED)
    radio("merge.config", "modelmerger_config_method", get_args(ConfigFrom), "A, B or C", **USED)
    with gr.Row(elem_classes=["with-button"]):
        vae = dropdown("merge.vae", "modelmerger_bake_in_vae", _vaes(app), NONE, allow_custom_value=True, **USED)
        refresh = icon_button("merge.refresh_vaes", "refresh", "modelmerger_refresh_bake_in_vae")
    gr.Textbox(
        label=text("merge.discard"),
        placeholder=text("merge.discard_hint"),
        lines=1,
        max_lines=1,
        elem_id="modelmerger_discard_weights",
        **USED,
    )
    return vae, refresh


def _metadata() -> tuple[gr.Textbox, gr.Button]:
    with switched("merge.save_metadata", "modelmerger_metadata", "modelmerger_save_metadata", on=True):
        gr.Checkbox(True, label=text("merge.add_recipe"), elem_id="modelmerger_add_recipe", min_width=0, **USED)
        gr.Checkbox(True, label=text("merge.copy_metadata"), elem_id="modelmerger_copy_metadata", min_width=0, **USED)
        metadata = gr.Textbox(
            "{}", label=text("merge.metadata"), lines=3, max_lines=8, elem_id="modelmerger_metadata_json", **USED
        )
        read = gr.Button(
            text("merge.read_metadata"), elem_id="modelmerger_read_metadata", elem_classes=["quiet"], min_width=0
        )
    return metadata, read


def _checkpoints(app: "App") -> list[Any]:
    app.library.refresh()
    return [gr.update(choices=titles(app)) for _ in MODELS]


def _vaes(app: "App", refresh: bool = False) -> list[str]:
    return [NONE, *(one.name for one in (app.vaes.refresh() if refresh else app.vaes.list()))]


def metadata_text(app: "App", chosen: tuple[str | None, ...]) -> str:
    """What a merge of the chosen checkpoints would take over, to be edited: without what is too long for that."""
    found = []
    for title in filter(None, chosen):
        try:
            found.append(_metadata_of(app.library.find(title)))
        except (UnknownCheckpoint, ModelFileError):  # the merge itself will say it
            continue
    shown = {key: value for key, value in shared_metadata(found).items() if len(value) <= MOST_SHOWN}
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Pickles and folders carry none."""
    if checkpoint.path.suffix.lower() != ".safetensors" or not checkpoint.path.is_file():
        return {}
    return dict(read_header(checkpoint.path).metadata)
