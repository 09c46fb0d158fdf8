"""Colour correction of img2img: the init picture's colours with the new picture's brightness. L*a*b* in the 8-bit
fixed-point arithmetic of OpenCV (modules/imgproc/src/color_lab.cpp, Apache 2.0), so it comes out as A1111's."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

ONE = 1 << 12  # of matrices and of the way back to bytes
UNIT = 1 << 15  # of f(t) on the way to L*a*b*
BASE = 1 << 14  # of f(t) on the way back
WHITE = np.array([0.950456, 1, 1.088754])  # D65
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
FROM_XYZ = np.array([[3.240479, -1.53715, -0.498535], [-0.969256, 1.875991, 0.041556], [0.055648, -0.204043, 1.057311]])


def corrected(image: Image.Image, target: Image.Image) -> Image.Image:
    """`image` in the colours of `target` (of any size), its brightness kept: the setting img2img_color_correction."""
    pixels = np.asarray(image.convert("RGB"))
    matched = match_histograms(to_lab(pixels), to_lab(np.asarray(target.convert("RGB"))))
    for rows in _bands(matched):
        matched[rows] = with_luminosity(to_rgb(matched[rows]), pixels[rows])
    return Image.fromarray(matched)


def to_lab(rgb: Bytes) -> Bytes:
    """(H, W, 3): L* 0–100 as 0–255, a* and b* plus 128."""
    linear, f = _to_lab_tables()
    matrix = np.rint(TO_XYZ / WHITE[:, None] * ONE).T
    lab = np.empty_like(rgb)
    for rows in _bands(rgb):
        xyz = (linear[rgb[rows]].astype(np.float64) @ matrix).astype(np.int64)  # whole numbers: exact
        lab[rows] = _lab(f[_shifted(xyz, 12)])
    return lab


def _lab(f: Ints) -> Bytes:
    """(H, W, 3), of X, Y and Z."""
    x, y, z = np.moveaxis(f, 2, 0)
    lightness = (116 * 255 + 50) // 100 * y - (16 * 255 * UNIT + 50) // 100
    lab = np.stack([lightness, 500 * (x - y) + 128 * UNIT, 200 * (y - z) + 128 * UNIT], axis=-1)
    return _shifted(lab, 15).clip(0, 255).astype(np.uint8)


def to_rgb(lab: Bytes) -> Bytes:
    f_of, y_of, gamma = _to_rgb_tables()
    lightness, a, b = np.moveaxis(lab.astype(np.int64), 2, 0)
    f = f_of[lightness]
    x = _cubed(f + (((5 * a * 53687 + (1 << 7)) >> 13) - 128 * BASE // 500))
    z = _cubed(f - (((b * 41943 + (1 << 4)) >> 9) - 128 * BASE // 200 + 1))
    matrix = np.rint(FROM_XYZ * WHITE * ONE).T
    linear = (np.stack([x, y_of[lightness], z], axis=-1).astype(np.float64) @ matrix).astype(np.int64)
    return np.asarray(gamma[_shifted(linear, 14).clip(0, ONE - 1)])


def match_histograms(source: Bytes, target: Bytes) -> Bytes:
    """(H, W, C), each channel by itself: a value becomes the one of equal rank in `target`."""
    matched = np.empty_like(source)
    for channel in range(source.shape[2]):
        ranks = np.cumsum(np.bincount(source[..., channel].ravel(), minlength=256)) / source[..., channel].size
        counts = np.bincount(target[..., channel].ravel(), minlength=256)
        values = counts.nonzero()[0]
        table = np.interp(ranks, np.cumsum(counts[values]) / target[..., channel].size, values)
        matched[..., channel] = table.astype(np.uint8)[source[..., channel]]
    return matched


def with_luminosity(colours: Bytes, brightness: Bytes) -> Bytes:
    """(H, W, 3): the blend mode "luminosity" of W3C's Compositing and Blending, section 10.2."""
    rgb, wanted = colours / 255, _luminosity(brightness / 255)
    rgb += (wanted - _luminosity(rgb))[..., None]
    grey = _luminosity(rgb)[..., None]
    low, high = rgb.min(axis=2, keepdims=True), rgb.max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        rgb = np.where(low < 0, grey + (rgb - grey) * grey / (grey - low), rgb)
        rgb = np.where(high > 1, grey + (rgb - grey) * (1 - grey) / (high - grey), rgb)
    return np.rint(np.nan_to_num(rgb * 255)).clip(0, 255).astype(np.uint8)


def _bands(pixels: Bytes) -> Iterator[slice]:
    """Rows of about a quarter of a million pixels at a time: the numbers between take far more memory than bytes."""
    step = max(1, 2**18 // pixels.shape[1])
    return (slice(start, start + step) for start in range(0, len(pixels), step))


def _luminosity(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rgb @ np.array([0.299, 0.587, 0.114]))


@lru_cache(maxsize=1)
def _to_lab_tables() -> tuple[Ints, Ints]:
    """sRGB byte -> linear light × 8; that -> the cube root of CIE L*a*b*."""
    s = np.arange(256) / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    t = (np.arange(256 * 3 // 2 * 8) / (255 * 8)).astype(np.float32)
    low = t * np.float32(7.787) + np.float32(16 / 116)
    f = np.where(t < np.float32(0.008856), low, np.cbrt(t)).astype(np.float64)
    return np.rint(linear * 255 * 8).astype(np.int64), np.rint(f * UNIT).astype(np.int64)


@lru_cache(maxsize=1)
def _to_rgb_tables() -> tuple[Ints, Ints, Bytes]:
    """L* byte -> f(Y) and Y; linear light in 4096ths -> sRGB byte."""
    lightness = np.arange(256) / 255 * 100
    dark = np.arange(256) <= 20
    f = np.where(dark, 16 / 116 + lightness / 116, (lightness + 16) / 116)
    y = np.where(dark, lightness / (29 / 3) ** 3, f**3)
    t = np.arange(ONE) / ONE
    gamma = np.where(t <= 0.0031308, t * 12.92, 1.055 * t ** (1 / 2.4) - 0.055)
    return (
        np.rint(f * BASE).astype(np.int64),
        np.rint(y * BASE).astype(np.int64),
        np.rint(gamma * 255).clip(0, 255).astype(np.uint8),
    )


def _cubed(f: Ints) -> Ints:
    """f(t) -> t, both in BASE; whole-number division falls towards 0."""
    line = np.fix(f * 108 / 841).astype(np.int64) - BASE * 16 * 108 // (116 * 841)
    return np.where(f <= 6 * BASE // 29, line, f * f // BASE * f // BASE)


def _shifted(value: Ints, bits: int) -> Ints:
    """Divided by 2^bits, rounded."""
    return (value + (1 << (bits - 1))) >> bits
