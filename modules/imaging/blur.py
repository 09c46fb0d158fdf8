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
        mask = _along_rows(mask, kernel(2 * int(2.5 * sigma_x + 0.5) + 1, sigma_x))
    if sigma_y > 0:
        mask = _along_rows(mask.T, kernel(2 * int(2.5 * sigma_y + 0.5) + 1, sigma_y)).T
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


def _along_rows(mask: Bytes, weights: tuple[int, ...]) -> Bytes:
    """Block by block as a product with a band matrix: whole numbers below 2^24, so float32 is exact."""
    reach, width = len(weights) // 2, mask.shape[1]
    padded = np.pad(mask, ((0, 0), (reach, reach)), mode="reflect").astype(np.float32)
    block = max(64, reach)
    band = np.zeros((block + 2 * reach, block), dtype=np.float32)
    for column in range(block):
        band[column : column + len(weights), column] = weights
    blurred = np.empty_like(mask)
    for start in range(0, width, block):
        count = min(block, width - start)
        total = padded[:, start : start + count + 2 * reach] @ band[: count + 2 * reach, :count]
        blurred[:, start : start + count] = (total.astype(np.int32) + FRACTION // 2) // FRACTION
    return blurred
