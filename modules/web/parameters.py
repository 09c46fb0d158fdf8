"""The parameters that txt2img and img2img share: prompts, buttons, sampling, size, batch, seed with its extras, and the
refiner. Each function makes its controls with a tab's prefix and gives them by the fields of a request."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.web.choices import SAMPLERS, SCHEDULES, titles
from modules.web.form import EXTRA, OVERRIDES
from modules.web.parts import dropdown, icon_button, slider, slot, switched
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App

Fields = dict[str, Any]


def prompts(tab: str) -> Fields:
    with gr.Column(elem_id=f"{tab}_prompt_container", elem_classes=["prompts"], min_width=0):
        prompt = gr.Textbox(
            label=text("prompt"),
            placeholder=text("prompt_hint"),
            lines=4,
            max_lines=4,
            elem_id=f"{tab}_prompt",
            elem_classes=["prompt"],
        )
        negative_prompt = gr.Textbox(
            label=text("negative_prompt"),
            placeholder=text("negative_prompt_hint"),
            lines=2,
            max_lines=2,
            elem_id=f"{tab}_neg_prompt",
            elem_classes=["negative-prompt"],
        )
    return {"prompt": prompt, "negative_prompt": negative_prompt}


def actions(tab: str) -> tuple[gr.Button, gr.Button]:
    """Generate, and the button that reads an infotext in the prompt's box."""
    with gr.Row(elem_id=f"{tab}_actions_column", elem_classes=["actions"]):
        generate = gr.Button(
            text("generate"), variant="primary", elem_id=f"{tab}_generate", elem_classes=["generate"], min_width=0
        )
        gr.Button(text("interrupt"), elem_id=f"{tab}_interrupt", elem_classes=["quiet", "interrupt"], min_width=0)
        gr.Button(text("skip"), elem_id=f"{tab}_skip", elem_classes=["quiet", "skip"], min_width=0)
        paste = icon_button("paste", "paste", "paste")
        icon_button("clear_prompt", "clear", f"{tab}_clear_prompt")
    return generate, paste


def sampling(tab: str, default: tuple[str, str, int, float]) -> Fields:
    """`default`: sampler, schedule, steps, CFG scale."""
    with gr.Row(elem_classes=["pair"]):
        sampler = dropdown("sampler", f"{tab}_sampling", SAMPLERS, default[0])
        schedule = dropdown("schedule", f"{tab}_scheduler", SCHEDULES, default[1])
    steps = slider("steps", f"{tab}_steps", 1, 150, default[2], 1)
    return {"sampler": sampler, "schedule": schedule, "steps": steps}


def size(tab: str, default: tuple[int, int]) -> Fields:
    with gr.Row(elem_classes=["size"]):
        with gr.Column(elem_classes=["sliders"], min_width=0):
            width = slider("width", f"{tab}_width", 64, 2048, default[0], 8)
            height = slider("height", f"{tab}_height", 64, 2048, default[1], 8)
        with gr.Column(elem_classes=["size-buttons"], min_width=0):
            icon_button("swap", "swap", f"{tab}_res_switch_btn")
            if tab == "img2img":
                icon_button("detect_size", "ruler", f"{tab}_detect_image_size_btn")
    slot("aspects", elem_id=f"{tab}_aspects")
    return {"width": width, "height": height}


def batch(tab: str) -> Fields:
    with gr.Row(elem_classes=["pair"]):
        count = slider("batch_count", f"{tab}_batch_count", 1, 100, 1, 1)
        size = slider("batch_size", f"{tab}_batch_size", 1, 8, 1, 1)
    return {"batch_count": count, "batch_size": size}


def guidance_and_seed(tab: str, cfg_default: float) -> Fields:
    with gr.Row(elem_classes=["pair"]):
        cfg_scale = slider("cfg_scale", f"{tab}_cfg_scale", 1, 30, cfg_default, 0.5)
        seed = _seed(tab, "seed", "seed")
    return {"cfg_scale": cfg_scale, "seed": seed, **_variation(tab)}


def _seed(tab: str, name: str, label: str) -> gr.Number:
    """A1111 calls the variation's seed "subseed"."""
    with gr.Row(elem_id=f"{tab}_{name}_row", elem_classes=["seed"]):
        seed = gr.Number(-1, label=text(label), elem_id=f"{tab}_{name}", precision=0, min_width=0)
        icon_button(f"random_{label}", "random", f"{tab}_random_{name}")
        icon_button(f"reuse_{label}", "reuse", f"{tab}_reuse_{name}")
    return seed


def _variation(tab: str) -> Fields:
    with switched("extra", f"{tab}_seed_extras", f"{tab}_subseed_show") as extra:
        with gr.Row(elem_classes=["pair"]):
            seed = _seed(tab, "subseed", "variation_seed")
            strength = slider("variation_strength", f"{tab}_subseed_strength", 0, 1, 0, 0.01)
        with gr.Row(elem_classes=["pair"]):
            width = slider("seed_resize_width", f"{tab}_seed_resize_from_w", 0, 2048, 0, 8)
            height = slider("seed_resize_height", f"{tab}_seed_resize_from_h", 0, 2048, 0, 8)
    return {
        EXTRA: extra,
        "variation_seed": seed,
        "variation_strength": strength,
        "seed_resize_width": width,
        "seed_resize_height": height,
    }


def refiner(app: "App", tab: str) -> Fields:
    with switched("refiner", f"{tab}_enable") as on, gr.Row(elem_classes=["pair"]):
        checkpoint = dropdown("checkpoint_of_part", f"{tab}_checkpoint", titles(app), None, allow_custom_value=True)
        switch_at = slider("switch_at", f"{tab}_switch_at", 0.01, 1, 0.8, 0.01)
    return {"refiner": on, "refiner.checkpoint": checkpoint, "refiner.switch_at": switch_at}


def override_settings(tab: str) -> Fields:
    """Settings that an infotext had otherwise; seen only when there are some."""
    with gr.Column(elem_classes=["overrides"], min_width=0):
        overrides = dropdown(
            "override_settings", f"{tab}_override_settings", [], [], multiselect=True, allow_custom_value=True
        )
    return {OVERRIDES: overrides}
