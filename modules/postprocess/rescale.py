"""The Extras tab's "Upscale": by a factor or to a size, with one upscaler or a mixture of two, and what of it the
infotext says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from modules.imaging.resize import Size
from modules.postprocess.upscale import Enlarge, upscale


@dataclass(frozen=True)
class Rescale:
    """`mode` and sizes as the page and the API have them."""

    mode: Literal["Scale by", "Scale to"] = "Scale by"
    by: float = 2
    max_side: int = 0  # pixels, with "Scale by"; 0: no limit
    to: Size = (512, 512)  # pixels, with "Scale to"
    crop: bool = True  # to exactly that size
    upscaler: str = "None"
    second: str = "None"
    second_visibility: float = 0  # 0–1


def rescaled(
    image: Image.Image, wanted: Rescale, enlarge: Callable[[str], Enlarge]
) -> tuple[Image.Image, dict[str, object]]:
    """The picture and the fields of its infotext. `enlarge` knows the upscalers by name."""
    if wanted.upscaler == "None":
        return image, {}
    scale, target, info = _aim(image.size, wanted)
    made = _once(image, scale, target, enlarge(wanted.upscaler))
    if target:
        info["Postprocess crop to"] = f"{made.width}x{made.height}"
    info["Postprocess upscaler"] = wanted.upscaler
    if wanted.second != "None" and wanted.second_visibility > 0:
        other = _once(image, scale, target, enlarge(wanted.second)).convert(made.mode)
        made = Image.blend(made, other, wanted.second_visibility)
        info["Postprocess upscaler 2"] = wanted.second
    return made, info


def within(size: tuple[float, float], limit: int) -> Size:
    """The size in the same proportions, its longer side at most `limit`."""
    width, height = size
    if height > width and height > limit:
        width, height = limit * width // height, limit
    elif width > limit:
        width, height = limit, limit * height // width
    return int(width), int(height)


def _aim(size: Size, wanted: Rescale) -> tuple[float, Size | None, dict[str, object]]:
    """The factor, what is cropped to (None: nothing is), and how the infotext says it."""
    width, height = size
    if wanted.mode == "Scale to":
        scale = max(wanted.to[0] / width, wanted.to[1] / height)
        to = f"{wanted.to[0]}x{wanted.to[1]}"
        return scale, wanted.to if wanted.crop else None, {"Postprocess upscale to": to}
    info: dict[str, object] = {"Postprocess upscale by": wanted.by}
    if wanted.max_side == 0 or max(size) * wanted.by <= wanted.max_side:
        return wanted.by, None, info
    to_width, to_height = within((width * wanted.by, height * wanted.by), wanted.max_side)
    info["Max side length"] = wanted.max_side
    return max(to_width / width, to_height / height), None, info


def _once(image: Image.Image, scale: float, target: Size | None, enlarge: Enlarge) -> Image.Image:
    made = upscale(image, scale, enlarge)
    if target is None:
        return made
    cropped = Image.new("RGB", target)
    cropped.paste(made, (target[0] // 2 - made.width // 2, target[1] // 2 - made.height // 2))
    return cropped
