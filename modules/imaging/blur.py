"""Gaussian blur of 8-bit masks in the fixed-point arithmetic that OpenCV has for them, so that masks come out as
A1111's to the last bit (OpenCV: modules/imgproc/src/smooth.dispatch.cpp, Apache 2.0)."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
FRACTION = 256  # kernels are whole 256ths


def blur_mask(mask: Bytes, sigma_x: float, sigma_y: float) -> Bytes:
    """(H, W) -> (H, W), with the kernel sizes of A1111's mask blur: 2.5 sigma to each side. 0: no blur."""
    if sigma_x > 0:
        mask = _along_columns(mask.T, kernel(2 * int(2.5 * sigma_x + 0.5) + 1, sigma_x)).T
    if sigma_y > 0:
        mask = _along_columns(mask, kernel(2 * int(2.5 * sigma_y + 0.5) + 1, sigma_y))
    return np.ascontiguousarray(mask)


@lru_cache(maxsize=16)
def kernel(size: int, sigma: float) -> tuple[int, ...]:
    """`size` (odd) weights of a Gaussian in 256ths, whose sum is exactly 1: what rounding takes from one weight, the
    next one gets, from the rim to the centre."""
    x = np.arange(size) - size // 2
    exact = np.exp(-0.5 * (x / sigma) ** 2)
    exact *= FRACTION / exact.sum()
    side: list[int] = []
    error = 0.0
    for weight in exact[: size // 2]:
        side.append(int(np.rint(weight + error)))
        error += weight - side[-1]
    return (*side, FRACTION - 2 * sum(side), *reversed(side))


def _along_columns(mask: Bytes, weights: tuple[int, ...]) -> Bytes:
    reach, height = len(weights) // 2, len(mask)
    padded = np.pad(mask, ((reach, reach), (0, 0)), mode="reflect").astype(np.int32)
    total = np.full(mask.shape, FRACTION // 2, dtype=np.int32)
    for shift, weight in enumerate(weights):
        if weight:
            total += padded[shift : shift + height] * weight
    return (total >> 8).astype(np.uint8)
