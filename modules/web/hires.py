"""Hires. fix: the second pass at a larger size. What it makes of the size is told by js/hires.js."""

from typing import TYPE_CHECKING

import gradio as gr

from modules.web.choices import SAMPLERS, SCHEDULES, titles, upscalers
from modules.web.form import SAME
from modules.web.parameters import Fields
from modules.web.parts import dropdown, slider, slot, switched
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App


def hires(app: "App", tab: str) -> Fields:
    with switched("hires", f"{tab}_hr") as on:
        slot("hires-size", elem_id=f"{tab}_hires_size")
        with gr.Row(elem_classes=["pair"]):
            upscaler = dropdown("upscaler", f"{tab}_hr_upscaler", upscalers(app), "Latent", allow_custom_value=True)
            steps = slider("hires_steps", f"{tab}_hires_steps", 0, 150, 0, 1)
        with gr.Row(elem_classes=["pair"]):
            strength = slider("denoising_strength", f"{tab}_denoising_strength", 0, 1, 0.7, 0.01)
            scale = slider("upscale_by", f"{tab}_hr_scale", 1, 4, 2, 0.05)
        with gr.Row(elem_classes=["pair"]):
            width = slider("resize_width_to", f"{tab}_hr_resize_x", 0, 2048, 0, 8)
            height = slider("resize_height_to", f"{tab}_hr_resize_y", 0, 2048, 0, 8)
        second = _second_pass(app, tab)
    return {
        "hires": on,
        "hires.upscaler": upscaler,
        "hires.steps": steps,
        "hires.denoising_strength": strength,
        "hires.scale": scale,
        "hires.resize_width": width,
        "hires.resize_height": height,
        **second,
    }


def _second_pass(app: "App", tab: str) -> Fields:
    """Empty or 0 is as in the first pass. A1111's ids of these have no prefix, but for the guidance's."""
    same, models = SAME["hires.checkpoint"], titles(app)
    with gr.Row(elem_classes=["pair"]):
        checkpoint = dropdown("checkpoint_of_part", "hr_checkpoint", [same, *models], same, allow_custom_value=True)
        cfg_scale = slider("hires_cfg_scale", f"{tab}_hr_cfg", 0, 30, 0, 0.5)
    with gr.Row(elem_classes=["pair"]):
        same = SAME["hires.sampler"]
        sampler = dropdown("hires_sampler", "hr_sampler", [same, *SAMPLERS], same)
        same = SAME["hires.schedule"]
        schedule = dropdown("hires_schedule", "hr_scheduler", [same, *SCHEDULES], same)
    prompt = gr.Textbox(
        label=text("hires_prompt"), placeholder=text("hires_prompt_hint"), lines=2, max_lines=4, elem_id="hires_prompt"
    )
    negative = gr.Textbox(
        label=text("hires_negative_prompt"),
        placeholder=text("hires_prompt_hint"),
        lines=1,
        max_lines=4,
        elem_id="hires_neg_prompt",
    )
    return {
        "hires.checkpoint": checkpoint,
        "hires.cfg_scale": cfg_scale,
        "hires.sampler": sampler,
        "hires.schedule": schedule,
        "hires.prompt": prompt,
        "hires.negative_prompt": negative,
    }
