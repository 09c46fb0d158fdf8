"""Inpaint sketch: what was painted over a picture, in colour, is both the mask and a hint of what is wanted."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from modules.imaging.transparency import flatten


def sketched(
    painted: Image.Image, original: Image.Image, *, transparency: float = 0, blur: float = 4
) -> tuple[Image.Image, Image.Image]:
    """(picture to start from, mask in mode L). `transparency`: 0–100 % of the painted colours; `blur`: radius in
    pixels, of the colours and of the edge between them and the original."""
    painted, original = flatten(painted), flatten(original)
    if painted.size != original.size:
        sizes = " and ".join("×".join(map(str, picture.size)) for picture in (painted, original))
        raise ValueError(f"the sketch and its original must be of one size, got {sizes}")
    changed = (np.asarray(painted) != np.asarray(original)).any(axis=-1)
    mask = Image.fromarray(changed.astype(np.uint8) * 255)
    mask = ImageEnhance.Brightness(mask).enhance(1 - transparency / 100)
    soft = ImageFilter.GaussianBlur(blur)
    return Image.composite(painted.filter(soft), original, mask.filter(soft)), mask
