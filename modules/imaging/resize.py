"""Pictures brought to a size: A1111's resize modes, and its rules for the sizes of img2img and hires fix. Knows nothing
of upscalers but how to call one."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal, get_args

from PIL import Image

ResizeMode = Literal["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)  # in A1111's numbering
Upscale = Callable[[Image.Image, int, int], Image.Image]  # picture, width, height -> picture of that size
Size = tuple[int, int]  # width, height

OLD_FIRST_PASS_PIXELS = 512 * 512


def lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def resize_image(
    mode: ResizeMode, image: Image.Image, width: int, height: int, upscale: Upscale = lanczos
) -> Image.Image:
    """Cropping and filling keep the picture's proportions, centred. `upscale` enlarges; masks (mode L) and whatever
    becomes smaller are left to Lanczos. Latent upscale is no matter of pixels: it stretches like "Just resize"."""
    if mode in ("Just resize", "Just resize (latent upscale)"):
        return _resized(image, width, height, upscale)
    crops = mode == "Crop and resize"
    scale_by_width = (width * image.height > height * image.width) == crops
    if scale_by_width:
        inner = width, max(1, image.height * width // image.width)
    else:
        inner = max(1, image.width * height // image.height), height
    resized = _resized(image, *inner, upscale)
    x, y = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(resized, (x, y))
    return canvas if crops else _filled(canvas, resized, x, y)


def scaled_size(size: Size, scale: float) -> Size:
    """The size of img2img's "Resize by"."""
    return int(size[0] * scale), int(size[1] * scale)


@dataclass(frozen=True)
class HiresSizes:
    """What the two passes of hires fix are as large as. All in pixels, but `cut`."""

    first: Size
    upscaled: Size  # what the first pass is enlarged to
    target: Size  # what is left after `cut`
    cut: Size  # latent cells too many, in width and height
    infotext: tuple[str, object]  # field and value

    def part(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns that are left of an enlarged latent of so many cells."""
        return _middle(height, self.cut[1]), _middle(width, self.cut[0])


def hires_sizes(
    width: int,
    height: int,
    scale: float = 2.0,
    resize_x: int = 0,
    resize_y: int = 0,
    *,
    final_size_given: bool = False,
    factor: int = 8,
) -> HiresSizes:
    """`scale` counts where neither `resize_x` nor `resize_y` is given (0: not given); one of them keeps the
    proportions, both cover the target and cut what is too much. `final_size_given` is the setting
    use_old_hires_fix_width_height: width and height are the target's, the first pass has about 512×512 pixels."""
    if final_size_given:
        resize_x, resize_y = width, height
        width, height = old_first_pass(width, height)
    first = width, height
    if not resize_x and not resize_y:
        upscaled = scaled_size(first, scale)
        return HiresSizes(first, upscaled, upscaled, (0, 0), ("Hires upscale", scale))
    by_width = resize_x, resize_x * height // width
    by_height = resize_y * width // height, resize_y
    if not resize_y:
        upscaled = target = by_width
    elif not resize_x:
        upscaled = target = by_height
    else:
        target = resize_x, resize_y
        upscaled = by_width if width * resize_y < resize_x * height else by_height
    cut = (upscaled[0] - target[0]) // factor, (upscaled[1] - target[1]) // factor
    return HiresSizes(first, upscaled, target, cut, ("Hires resize", f"{resize_x}x{resize_y}"))


def old_first_pass(width: int, height: int) -> Size:
    """About 512×512 pixels of the same proportions, in multiples of 64."""
    scale = sqrt(OLD_FIRST_PASS_PIXELS / (width * height))
    return ceil(scale * width / 64) * 64, ceil(scale * height / 64) * 64


def _resized(image: Image.Image, width: int, height: int, upscale: Upscale) -> Image.Image:
    if image.mode == "L" or max(width / image.width, height / image.height) <= 1:
        return lanczos(image, width, height)
    return upscale(image, width, height)


def _filled(canvas: Image.Image, inner: Image.Image, x: int, y: int) -> Image.Image:
    """The empty stripes beside the picture, or above and below it, take the colours of its edges."""
    width, height = inner.size
    right, bottom = canvas.width - x - width, canvas.height - y - height
    if y > 0:
        canvas.paste(inner.resize((width, y), box=(0, 0, width, 0)), (0, 0))
    if bottom > 0:
        canvas.paste(inner.resize((width, bottom), box=(0, height, width, height)), (0, y + height))
    if x > 0:
        canvas.paste(inner.resize((x, height), box=(0, 0, 0, height)), (0, 0))
    if right > 0:
        canvas.paste(inner.resize((right, height), box=(width, 0, width, height)), (x + width, 0))
    return canvas


def _middle(length: int, cut: int) -> slice:
    return slice(cut // 2, length - (cut + 1) // 2)
