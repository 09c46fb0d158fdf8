"""The tab txt2img: its form, and the events that queue it and fill it. Everything that follows (progress, previews,
pictures) reaches the page as server-sent events; see js/."""

import json
import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr
from pydantic import ValidationError

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.web.checkpoints import choices, default_size
from modules.web.form import NAMES, Form, Problem, checked, from_infotext, problems_of, request_from, sentence
from modules.web.parts import QUICK, icon_button, slider, slot, wire_in, wire_out
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App

log = logging.getLogger(__name__)

DATABASE_FAILED = (
    "The list of jobs cannot be written now (a full disk?), so nothing was queued. Make room, then try again."
)


def txt2img_tab(app: "App", checkpoint: gr.Dropdown) -> tuple[Form, gr.Button]:
    with gr.Row(elem_id="txt2img_panel", elem_classes=["workbench"]):
        with gr.Column(elem_id="txt2img_settings", elem_classes=["settings"], min_width=0):
            prompt, negative_prompt = _prompts()
            generate, paste = _actions()
            with gr.Column(elem_classes=["parameters"], min_width=0):
                form = _parameters(prompt, negative_prompt, checkpoint, default_size(app))
        slot("viewer", elem_id="txt2img_results")
    ticket, reply = wire_in("txt2img_ticket"), wire_out("txt2img_reply")
    generate.click(_submitter(app), [ticket, *form.components()], [reply], trigger_mode="multiple", **QUICK)
    paste.click(fill_from_infotext(app), [prompt], [reply, *form.components()], **QUICK)
    saved, restore = wire_in("txt2img_saved"), gr.Button("", elem_id="txt2img_restore", elem_classes=["wire"])
    restore.click(_restorer(app), [saved], [reply, *form.components()], **QUICK)
    return form, reply


def _prompts() -> tuple[gr.Textbox, gr.Textbox]:
    with gr.Column(elem_id="txt2img_prompt_container", elem_classes=["prompts"], min_width=0):
        prompt = gr.Textbox(
            label=text("prompt"),
            placeholder=text("prompt_hint"),
            lines=4,
            max_lines=4,
            elem_id="txt2img_prompt",
        )
        negative_prompt = gr.Textbox(
            label=text("negative_prompt"),
            placeholder=text("negative_prompt_hint"),
            lines=2,
            max_lines=2,
            elem_id="txt2img_neg_prompt",
        )
    return prompt, negative_prompt


def _actions() -> tuple[gr.Button, gr.Button]:
    with gr.Row(elem_id="txt2img_actions_column", elem_classes=["actions"]):
        generate = gr.Button(text("generate"), variant="primary", elem_id="txt2img_generate", min_width=0)
        gr.Button(text("interrupt"), elem_id="txt2img_interrupt", elem_classes=["quiet"], min_width=0)
        gr.Button(text("skip"), elem_id="txt2img_skip", elem_classes=["quiet"], min_width=0)
        paste = icon_button("paste", "paste", "paste", min_width=0)
        icon_button("clear_prompt", "clear", "txt2img_clear_prompt", min_width=0)
    return generate, paste


def _parameters(
    prompt: gr.Textbox, negative_prompt: gr.Textbox, checkpoint: gr.Dropdown, size: tuple[int, int]
) -> Form:
    with gr.Row(elem_classes=["pair"]):
        samplers = [info.name for info in SAMPLER_INFOS]
        sampler = gr.Dropdown(
            samplers, value=samplers[0], label=text("sampler"), elem_id="txt2img_sampling", min_width=0
        )
        schedules = [info.label for info in SCHEDULE_INFOS]
        schedule = gr.Dropdown(
            schedules, value=schedules[0], label=text("schedule"), elem_id="txt2img_scheduler", min_width=0
        )
    steps = slider("steps", "txt2img_steps", 1, 150, 20, 1)
    with gr.Row(elem_classes=["size"]):
        with gr.Column(elem_classes=["sliders"], min_width=0):
            width = slider("width", "txt2img_width", 64, 2048, size[0], 8)
            height = slider("height", "txt2img_height", 64, 2048, size[1], 8)
        with gr.Column(elem_classes=["size-buttons"], min_width=0):
            icon_button("swap", "swap", "txt2img_res_switch_btn", min_width=0)
    slot("aspects", elem_id="txt2img_aspects")
    with gr.Row(elem_classes=["pair"]):
        batch_count = slider("batch_count", "txt2img_batch_count", 1, 100, 1, 1)
        batch_size = slider("batch_size", "txt2img_batch_size", 1, 8, 1, 1)
    with gr.Row(elem_classes=["pair"]):
        cfg_scale = slider("cfg_scale", "txt2img_cfg_scale", 1, 30, 7, 0.5)
        with gr.Row(elem_id="txt2img_seed_row", elem_classes=["seed"]):
            seed = gr.Number(-1, label=text("seed"), elem_id="txt2img_seed", precision=0, min_width=0)
            icon_button("random_seed", "random", "txt2img_random_seed", min_width=0)
            icon_button("reuse_seed", "reuse", "txt2img_reuse_seed", min_width=0)
    return Form(
        prompt,
        negative_prompt,
        sampler,
        schedule,
        steps,
        width,
        height,
        batch_count,
        batch_size,
        cfg_scale,
        seed,
        checkpoint,
    )


def _submitter(app: "App") -> Callable[..., Any]:
    def submit(ticket: str, *values: Any) -> Any:
        """The ticket is what the page's script says of itself: which tab it is, and a key of this one click."""
        stub = json.loads(ticket)
        client, key = str(stub["client"])[:64], str(stub["key"])[:64]
        once = f"page:{client}:{key}"  # the same click, sent twice, is one job
        try:
            request = request_from(dict(zip(NAMES, values, strict=True)))
            job = app.queue.submit(request, app.settings.current, source="page", client=client, key=once)
        except ValidationError as error:
            return _reply(key=key, problems=problems_of(error))
        except ValueError as error:  # the queue's own refusals: no such checkpoint, too many jobs waiting
            return _reply(key=key, problems=[sentence(str(error))])
        except sqlite3.Error as error:
            log.error("the job database failed", exc_info=error)
            return _reply(key=key, problems=[sentence(DATABASE_FAILED)])
        return _reply(key=key, job=job.id)

    return submit


def fill_from_infotext(app: "App") -> Callable[[str], list[Any]]:
    """Fills the form from an infotext; what it does not name stays as it is."""

    def fill(written: str) -> list[Any]:
        values, problems = checked(from_infotext(written or ""), app.library)
        return _filled(values, problems)

    return fill


def _restorer(app: "App") -> Callable[[str], list[Any]]:
    def restore(saved: str) -> list[Any]:
        """Sent once by every page that opens: it brings back the tab's own form, and today's list of checkpoints."""
        form = json.loads(saved or "{}")
        if "infotext" in form:  # a picture's own parameters, sent by the viewer's button
            return fill_from_infotext(app)(form["infotext"])
        values, _ = checked(form, app.library)
        titles, selected = choices(app)
        if "checkpoint" not in values:
            values["checkpoint"] = selected
        filled = _filled(values, [])
        filled[1 + NAMES.index("checkpoint")] = gr.update(choices=titles, value=values["checkpoint"])
        return filled

    return restore


def _filled(values: dict[str, Any], problems: list[Problem]) -> list[Any]:
    updates = [gr.update(value=values[name]) if name in values else gr.skip() for name in NAMES]
    return [_reply(problems=problems), *updates]


def _reply(**answer: Any) -> Any:
    return gr.update(value=json.dumps(answer))
