"""POST /sdapi/v1/img2img: A1111's fields in; out comes a GenerationRequest like any other. Its own part is what the
picture starts from: init images and mask."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from modules.generation.reading import Reading
from modules.generation.request import (
    MASKED_CONTENTS,
    RESIZE_MODES,
    Init,
    Loopback,
    Mask,
    SdUpscale,
    SoftInpainting,
)
from modules.imaging.decode import ImageError, decode_base64
from modules.library.upscalers import PLAIN
from modules.server import builtin
from modules.server.call import Call, Draft, Styles, draft, finish, named
from modules.server.errors import ApiError, field_error
from modules.server.fields import IMG2IMG
from modules.settings.schema import Settings

Put = Callable[[Image.Image], str]  # keeps a picture, and gives its id

INIT_NAMES = {"images": "init_images"}
MASK_NAMES = {"content": "inpainting_fill", "padding": "inpaint_full_res_padding"}
BLUR_NAMES = {"blur_x": "mask_blur_x", "blur_y": "mask_blur_y"}
SCRIPT_ARGS = tuple(f"script_args[{place}]" for place in range(4))
NO_PICTURE = "0" * 64  # an id, until everything else is found to be in order
MOST_INIT_IMAGES = 8
# An infotext's values of Init and its mask, by A1111's names. Modes are numbers there.
_INIT_FROM_INFOTEXT = {"denoising_strength": "denoising_strength", "image_cfg_scale": "image_cfg_scale"}
_MASK_FROM_INFOTEXT = {"blur_x": "mask_blur_x", "blur_y": "mask_blur_y", "padding": "inpaint_full_res_padding"}


def understand(body: Mapping[str, Any], settings: Settings, put: Put, styles: Styles = lambda: ()) -> Call:
    """Raises ApiError; pictures are kept only when all else is in order. `parameters` then have no pictures in them,
    unless they are asked for."""
    found = draft(body, IMG2IMG, "img2img", settings, _from_infotext, styles)
    values = found.parameters
    pictures = values["init_images"]
    if not pictures:
        raise field_error("init_images", pictures, "Init image not found; send a list with one picture as base64", 404)
    found = replace(found, common={**found.common, "batch_size": _batch_size(values)})
    call = finish(found, init=_init(found))
    ids = tuple(_kept(f"init_images[{index}]", one, put) for index, one in enumerate(pictures))
    init = call.request.init
    assert init is not None
    mask = init.mask and init.mask.model_copy(update={"image": _kept("mask", values["mask"], put)})
    request = call.request.model_copy(update={"init": init.model_copy(update={"images": ids, "mask": mask})})
    if not values["include_init_images"]:
        values |= {"init_images": None, "mask": None}
    return replace(call, request=request)


def _batch_size(values: Mapping[str, Any]) -> int:
    """More than one init image are a batch of their own."""
    count, wanted = len(values["init_images"]), int(values["batch_size"])
    if count > 1 and count > wanted:
        message = f"bad number of images passed: {count}; expecting {wanted} or less. Raise batch_size to {count}"
        if count > MOST_INIT_IMAGES:
            message = f"{count} images are too many; at most {MOST_INIT_IMAGES} are taken"
        raise field_error("init_images", count, message)
    return count if count > 1 else wanted


def _init(found: Draft) -> Init:
    values = found.parameters
    mode = _place("resize_mode", values["resize_mode"], RESIZE_MODES)
    scale = values["image_cfg_scale"]
    mask = _mask(found) if values["mask"] else None
    if mask and mode == RESIZE_MODES[3]:
        raise field_error("resize_mode", 3, "latent upscale cannot be used with a mask; take 0, 1 or 2")
    if mask is None and values["inpainting_mask_invert"]:
        found.warnings.append("inpainting_mask_invert has no effect without a mask")
    with named(INIT_NAMES):
        return Init(
            images=(NO_PICTURE,) * len(values["init_images"]),
            denoising_strength=values["denoising_strength"],
            resize_mode=mode,
            image_cfg_scale=1.0 if scale is None else scale,  # as no scale at all: the image counts as it is
            mask=mask,
            script=_script(found),
        )


def _script(found: Draft) -> SdUpscale | Loopback | None:
    if found.script is None:
        return None
    values, (name, args) = found.parameters, found.script
    if len(values["init_images"]) > 1:
        raise field_error("init_images", len(values["init_images"]), f"{name} starts from one picture; send only one")
    if name == builtin.LOOPBACK:
        if args[3].casefold() not in ("", "none"):
            raise field_error("script_args[3]", args[3], "interrogation is not available here yet; send None")
        if values["batch_size"] > 1:
            found.warnings.append("loopback makes one picture after the other; batch_size has no effect")
        with named(dict(zip(("loops", "final_denoising_strength", "curve"), SCRIPT_ARGS, strict=False))):
            return Loopback(loops=_whole(args[0]), final_denoising_strength=args[1], curve=args[2])
    if values["mask"]:
        raise field_error("mask", None, "sd upscale paints the whole picture anew; leave the mask out")
    with named(dict(zip(("overlap", "upscaler", "scale"), SCRIPT_ARGS[1:], strict=True))):
        return SdUpscale(overlap=_whole(args[1]), upscaler=_upscaler(args[2]), scale=args[3])


def _upscaler(value: str | int) -> str:
    """By name. A1111's page sends its place in the list, where only the first few are everywhere the same."""
    if isinstance(value, str):
        return value
    if not 0 <= value < len(PLAIN):
        listed = ", ".join(f"{number} ({name})" for number, name in enumerate(PLAIN))
        raise field_error("script_args[2]", value, f"must be the name of an upscaler, or one of {listed}")
    return PLAIN[value]


def _whole(value: float) -> Any:
    return int(value) if value == int(value) else value


def _mask(found: Draft) -> Mask:
    values, both = found.parameters, found.parameters["mask_blur"]
    content = _place("inpainting_fill", values["inpainting_fill"], MASKED_CONTENTS)
    blurs = dict.fromkeys(BLUR_NAMES, "mask_blur") if both is not None else BLUR_NAMES
    soft = _soft(found.scripts)
    with named({**MASK_NAMES, **blurs}):
        return Mask(
            image=NO_PICTURE,
            blur_x=values["mask_blur_x"] if both is None else both,
            blur_y=values["mask_blur_y"] if both is None else both,
            content=content,
            invert=bool(values["inpainting_mask_invert"]),
            only_masked=values["inpaint_full_res"],
            padding=values["inpaint_full_res_padding"],
            round=values["mask_round"],
            soft=soft,
        )


def _soft(scripts: Mapping[str, list[Any]]) -> SoftInpainting | None:
    enabled, *values = scripts.get(builtin.SOFT_INPAINTING, [False])
    if not enabled:
        return None
    return SoftInpainting(**dict(zip(SoftInpainting.model_fields, values, strict=True)))


def _place(name: str, value: int, choices: tuple[Any, ...]) -> Any:
    if not 0 <= value < len(choices):
        listed = ", ".join(f"{number} ({choice})" for number, choice in enumerate(choices))
        raise field_error(name, value, f"must be one of {listed}")
    return choices[value]


def _kept(name: str, text: Any, put: Put) -> str:
    if not isinstance(text, str) or not text:
        raise field_error(name, text, "must be a picture as base64, or a data URL")
    try:
        image = decode_base64(text)
    except ImageError as error:
        raise field_error(name, None, str(error)) from error
    try:
        return put(image)
    except OSError as error:
        sentence = f"the picture cannot be kept now ({error.strerror or type(error).__name__}); nothing was queued"
        raise ApiError(503, sentence) from error


def _from_infotext(reading: Reading) -> dict[str, Any]:
    init = reading.init
    mask = init.get("mask") or {}
    found = {name: init[ours] for ours, name in _INIT_FROM_INFOTEXT.items() if ours in init}
    found |= {name: mask[ours] for ours, name in _MASK_FROM_INFOTEXT.items() if ours in mask}
    if "content" in mask:
        found["inpainting_fill"] = MASKED_CONTENTS.index(mask["content"])
    if "invert" in mask:
        found["inpainting_mask_invert"] = int(mask["invert"])
    if "only_masked" in mask:
        found["inpaint_full_res"] = mask["only_masked"]
    if "soft" in mask:
        found["alwayson_scripts"] = {builtin.SOFT_INPAINTING: {"args": [True, *_soft_values(mask["soft"])]}}
    return found


def _soft_values(given: Mapping[str, Any]) -> list[Any]:
    return [given.get(name, one.default) for name, one in SoftInpainting.model_fields.items()]
