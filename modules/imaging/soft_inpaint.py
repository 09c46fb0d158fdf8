"""Soft inpainting, picture-wise: how much of the original shows through is decided cell by cell, by how far the latent
moved away from it. The latent's own blending is modules/diffusion/soft_inpaint.py. Knows no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from modules.imaging.inpainting import placed
from modules.imaging.masks import Box, punched
from modules.imaging.resize import Size, resize_image

Cells = npt.NDArray[np.float32]
KERNEL_REACH, KERNEL_RADIUS = 2, 1.5  # latent cells: half of the window, radius of its Gaussian
EDGE_BLUR = 4  # pixels


@dataclass(frozen=True)
class SoftInpainting:
    mask_blend_power: float = 1  # 0–8, "schedule bias": later steps keep more (below 1) or less of the original
    mask_blend_scale: float = 0.5  # 0–8, "preservation strength"
    inpaint_detail_preservation: float = 4  # 1–32, "transition contrast boost": the stronger latent's contrast survives
    composite_mask_influence: float = 0  # 0–1: of the mask upon what counts as a difference
    composite_difference_threshold: float = 0.5  # 0–8: a latent that moved so far is half new
    composite_difference_contrast: float = 2  # 0–8: how sharply that changes

    def infotext(self) -> dict[str, object]:
        return {"Soft inpainting enabled": True} | {name: getattr(self, key) for key, name in INFOTEXT_NAMES.items()}


INFOTEXT_NAMES: Mapping[str, str] = {
    "mask_blend_power": "Soft inpainting schedule bias",
    "mask_blend_scale": "Soft inpainting preservation strength",
    "inpaint_detail_preservation": "Soft inpainting transition contrast boost",
    "composite_mask_influence": "Soft inpainting mask influence",
    "composite_difference_threshold": "Soft inpainting difference threshold",
    "composite_difference_contrast": "Soft inpainting difference contrast",
}


def soft_overlay(
    distance: Cells, mask: Cells, original: Image.Image, size: Size, soft: SoftInpainting, region: Box | None = None
) -> tuple[Image.Image, Image.Image]:
    """(the original with a soft hole, RGBA; the hole, L), both as large as `original`: the whole finished picture.
    `distance`: (H, W) latent cells, how far each moved; `mask`: (H, W) 0–1, not rounded; `size`: what the model
    painted, in pixels; `region`: where that lies in the picture, if it is only a part."""
    hole = Image.fromarray(opacity(distance, mask, soft))
    hole = resize_image("Resize and fill", hole, *size).filter(ImageFilter.GaussianBlur(EDGE_BLUR))
    hole = placed(hole, region, original.size).convert("L")
    return punched(original, hole).convert("RGBA"), hole


def opacity(distance: Cells, mask: Cells, soft: SoftInpainting) -> npt.NDArray[np.uint8]:
    """(H, W), 255 where the picture is all new."""
    distance = weighted_window(weighted_window(distance, 0.9, 1), 0.25, 0.75)
    half = soft.composite_difference_threshold * _leniency(mask, soft)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kept = 1 / (1 + (distance / half) ** soft.composite_difference_contrast)
    kept = np.nan_to_num(kept, nan=1.0)  # 0/0: no threshold, and nothing moved
    return (255 * (1 - _smootherstep(kept))).astype(np.uint8)


def weighted_window(image: Cells, low: float, high: float) -> Cells:
    """(H, W): the mean of what lies between two fractions, `low` and `high`, of each cell's neighbours in order of
    their values, where near neighbours count more. 0.9, 1 is a soft maximum, 0.25, 0.75 a soft median."""
    values, weights = _neighbours(image)
    order = values.argsort(axis=0, kind="stable")
    values, weights = np.take_along_axis(values, order, axis=0), np.take_along_axis(weights, order, axis=0)
    top = weights.cumsum(axis=0)  # each value's share of the whole ends here
    start, end = _at_least(1.0, top[-1] * low, top[-1] * high, top[-1])
    share = (np.minimum(top, end) - np.maximum(top - weights, start)).clip(min=0)
    return np.asarray((values * share).sum(axis=0) / share.sum(axis=0), dtype=np.float32)


def _neighbours(image: Cells) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(N, H, W): values and weights of all cells in the window; those outside the picture weigh nothing."""
    height, width = image.shape
    reach = KERNEL_REACH
    padded = np.pad(image.astype(np.float64), reach)
    inside = np.pad(np.ones_like(image, dtype=np.float64), reach)
    values, weights = [], []
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            part = slice(reach + dy, reach + dy + height), slice(reach + dx, reach + dx + width)
            values.append(padded[part])
            weights.append(inside[part] * _weight(dx * dx + dy * dy))
    return np.stack(values), np.stack(weights)


def _weight(square: int) -> float:
    """Of a cell at this squared distance: a Gaussian that comes down to 0 one cell outside of the window."""
    floor = exp(-((KERNEL_REACH + 1) ** 2) / KERNEL_RADIUS**2)
    return max(0.0, (exp(-square / KERNEL_RADIUS**2) - floor) / (1 - floor))


def _at_least(
    width: float, start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], total: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The window made so wide, if it is not, and moved into the stack."""
    narrow, centre = end - start < width, (start + end) / 2
    start, end = np.where(narrow, centre - width / 2, start), np.where(narrow, centre + width / 2, end)
    over = narrow & (end > total)
    start, end = np.where(over, total - width, start), np.where(over, total, end)
    under = narrow & (start < 0)
    return np.where(under, 0, start), np.where(under, width, end)


def _leniency(mask: Cells, soft: SoftInpainting) -> Cells:
    """(H, W): what a distance is measured by; larger where the mask keeps more."""
    keeps = 1 - mask.clip(0, 1) ** (soft.mask_blend_scale / 2)
    blended = 0.5 * (1 - soft.composite_mask_influence) + keeps * soft.composite_mask_influence
    return np.asarray(blended / (1.00001 - blended), dtype=np.float32)


def _smootherstep(x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.asarray(x**3 * (x * (x * 6 - 15) + 10))
