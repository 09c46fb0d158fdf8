"""The tab img2img: its form, and the requests that it makes of it. The pictures are not in the form: the page's script
sends them to /api/v1/inputs when Generate is pressed, and the ticket names them by id (js/img2img.js)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.generation.request import MASKED_CONTENTS, RESIZE_MODES, GenerationRequest
from modules.imaging.sketch import sketched
from modules.jobs.inputs import Inputs
from modules.web import parameters
from modules.web.checkpoints import defaults
from modules.web.filling import Wires
from modules.web.form import WORDS, Form, Values, request_from
from modules.web.parameters import Fields
from modules.web.parts import radio, slider, slot, switched
from modules.web.workbench import workbench

if TYPE_CHECKING:
    from modules.app import App

TAB = "img2img"
SCALE, TRANSPARENCY = "scale", "transparency"  # boxes that no field of a request has
MODES = ("img2img", "sketch", "inpaint", "inpaint_sketch", "inpaint_upload", "batch")


def img2img_tab(app: "App", checkpoint: gr.Dropdown) -> tuple[Form, Wires]:
    return workbench(
        app,
        TAB,
        checkpoint,
        lambda: _parameters(app),
        "results",
        lambda values, ticket: requests_of(app.inputs, values, ticket),
    )


def _parameters(app: "App") -> Fields:
    slot("init", elem_id="img2img_pictures")
    usual = defaults(app)
    fields = _masking()
    fields |= {"init.resize_mode": radio("resize_mode", "resize_mode", RESIZE_MODES, RESIZE_MODES[0])}
    fields |= _strength()
    fields |= _resizing(usual.size)
    fields |= parameters.sampling(TAB, usual.sampling)
    fields |= parameters.batch(TAB)
    fields |= parameters.guidance_and_seed(TAB, usual.sampling[3])
    fields |= parameters.refiner(app, TAB)
    return fields


def _masking() -> Fields:
    """Seen with a mask only."""
    masked, area = WORDS["init.mask.invert"], WORDS["init.mask.only_masked"]
    with gr.Column(elem_id="inpaint_controls", elem_classes=["masking"], min_width=0):
        with gr.Row(elem_classes=["pair"]):
            blur = slider("mask_blur", f"{TAB}_mask_blur", 0, 64, 4, 1)
            transparency = slider("mask_transparency", f"{TAB}_mask_alpha", 0, 100, 0, 1)
        fields = {
            "init.mask.blur_x": blur,
            TRANSPARENCY: transparency,
            "init.mask.invert": radio("mask_mode", f"{TAB}_mask_mode", masked, masked[0]),
            "init.mask.content": radio("masked_content", f"{TAB}_inpainting_fill", MASKED_CONTENTS, "original"),
        }
        fields["init.mask.only_masked"] = radio("inpaint_area", f"{TAB}_inpaint_full_res", area, area[0])
        padding = slider("mask_padding", f"{TAB}_inpaint_full_res_padding", 0, 256, 32, 4)
        return {**fields, "init.mask.padding": padding, **_soft_inpainting()}


def _soft_inpainting() -> Fields:
    with switched("soft_inpainting", "soft_inpainting_enabled") as on:
        with gr.Row(elem_classes=["pair"]):
            power = slider("schedule_bias", "mask_blend_power", 0, 8, 1, 0.1)
            scale = slider("preservation_strength", "mask_blend_scale", 0, 8, 0.5, 0.05)
        with gr.Row(elem_classes=["pair"]):
            detail = slider("transition_contrast", "inpaint_detail_preservation", 1, 32, 4, 0.5)
            influence = slider("mask_influence", "composite_mask_influence", 0, 1, 0, 0.05)
        with gr.Row(elem_classes=["pair"]):
            threshold = slider("difference_threshold", "composite_difference_threshold", 0, 8, 0.5, 0.25)
            contrast = slider("difference_contrast", "composite_difference_contrast", 0, 8, 2, 0.25)
    return {
        "init.mask.soft": on,
        "init.mask.soft.mask_blend_power": power,
        "init.mask.soft.mask_blend_scale": scale,
        "init.mask.soft.inpaint_detail_preservation": detail,
        "init.mask.soft.composite_mask_influence": influence,
        "init.mask.soft.composite_difference_threshold": threshold,
        "init.mask.soft.composite_difference_contrast": contrast,
    }


def _strength() -> Fields:
    strength = slider("denoising_strength", f"{TAB}_denoising_strength", 0, 1, 0.75, 0.01)
    with gr.Column(elem_classes=["image-cfg"], min_width=0):  # seen with instruct-pix2pix only
        image_cfg = slider("image_cfg_scale", f"{TAB}_image_cfg_scale", 0, 3, 1.5, 0.05)
    return {"init.denoising_strength": strength, "init.image_cfg_scale": image_cfg}


def _resizing(default: tuple[int, int]) -> Fields:
    with gr.Column(elem_id="img2img_resizing", elem_classes=["resizing"], min_width=0):
        slot("resizing")
        with gr.Column(elem_id="img2img_tab_resize_to", elem_classes=["resize-to"], min_width=0):
            fields = parameters.size(TAB, default)
        with gr.Column(elem_id="img2img_tab_resize_by", elem_classes=["resize-by"], min_width=0):
            fields[SCALE] = slider("scale", f"{TAB}_scale", 0.05, 4, 1, 0.05)
            slot("scaled-size")
    return fields


@dataclass(frozen=True)
class Pictures:
    """What the ticket says of the pictures, all by their ids."""

    mode: str
    images: tuple[str, ...]
    masks: tuple[str, ...]  # none, one for all, or one for each image
    original: str | None  # of an inpaint sketch: the picture without the paint
    by_scale: bool  # their own size times `scale`, instead of width and height

    @classmethod
    def of(cls, ticket: dict[str, Any]) -> "Pictures":
        told = ticket.get("init") or {}
        mode, images, masks = (
            str(told.get("mode")),
            *(tuple(map(str, told.get(key, ()))) for key in ("images", "masks")),
        )
        if mode not in MODES or not images:
            raise ValueError("there is no picture to start from; drop one, paste one or choose one")
        if masks and len(masks) not in (1, len(images)):
            raise ValueError(f"as many masks as pictures ({len(images)}) or one for all are needed, got {len(masks)}")
        return cls(mode, images, masks, told.get("original"), bool(told.get("by_scale")))


def requests_of(inputs: Inputs, values: Values, ticket: dict[str, Any]) -> Sequence[GenerationRequest]:
    """One for each picture of a batch, else one."""
    pictures = Pictures.of(ticket)
    for id in (*pictures.images, *pictures.masks):
        inputs.read(id)  # a page may be older than what is kept; better told now than by a job that fails
    return [_request(inputs, values, pictures, image, mask) for image, mask in _pairs(inputs, values, pictures)]


def _pairs(inputs: Inputs, values: Values, pictures: Pictures) -> Iterator[tuple[str, str | None]]:
    """Each picture with its mask. An inpaint sketch becomes a picture and a mask here."""
    if pictures.mode == "inpaint_sketch" and pictures.original:
        painted, original = inputs.get(pictures.images[0]), inputs.get(pictures.original)
        blur, transparency = values["init.mask.blur_x"] or 0, values[TRANSPARENCY] or 0
        image, mask = sketched(painted, original, transparency=transparency, blur=blur)
        yield inputs.put(image), inputs.put(mask)
        return
    for index, id in enumerate(pictures.images):
        masks = pictures.masks
        yield id, masks[index % len(masks)] if masks else None


def _request(inputs: Inputs, values: Values, pictures: Pictures, image: str, mask: str | None) -> GenerationRequest:
    wanted = {name: value for name, value in values.items() if name not in (SCALE, TRANSPARENCY)}
    wanted["init.images"] = (image,)
    if mask is None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("init.mask")}
    else:
        wanted |= {"init.mask.image": mask, "init.mask.blur_y": wanted["init.mask.blur_x"]}
    if pictures.by_scale:
        wanted["width"], wanted["height"] = scaled(inputs.get(image).size, values[SCALE] or 1)
    return request_from(wanted)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """In steps of 8 pixels, rounded down; js/img2img.js tells the same beforehand."""
    width, height = (int(side * scale) // 8 * 8 for side in size)
    return width, height
