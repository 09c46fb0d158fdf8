"""Pictures with transparent parts, put onto a colour."""

from PIL import Image, ImageColor


class ColourError(ValueError):
    """A text that names no colour."""


def flatten(image: Image.Image, background: str = "#ffffff") -> Image.Image:
    """Mode RGB. `background`: the setting img2img_background_color, such as #ffffff."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        ground = Image.new("RGB", image.size, colour_of(background))
        ground.paste(image.convert("RGBA"), mask=image.convert("RGBA"))
        return ground
    return image.convert("RGB")


def colour_of(text: str) -> tuple[int, int, int]:
    """Also takes rgb(…) and rgba(…) with fractions, as browsers' colour pickers write them."""
    try:
        red, green, blue = ImageColor.getcolor(text.strip(), "RGB")[:3]  # type: ignore[index]
    except (ValueError, TypeError):
        red, green, blue = _from_function(text)
    return int(red), int(green), int(blue)


def _from_function(text: str) -> tuple[int, int, int]:
    name, bracket, rest = text.strip().lower().partition("(")
    numbers = rest.rstrip(")").split(",")
    try:
        values = [min(max(round(float(number)), 0), 255) for number in numbers[:3]]
    except (ValueError, OverflowError):
        values = []
    if name.strip() not in ("rgb", "rgba") or not bracket or len(values) != 3:
        raise ColourError(f"{text[:40]!r} is no colour; write one such as #ffffff")
    return values[0], values[1], values[2]
