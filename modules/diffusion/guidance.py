"""Classifier-free guidance, Ho & Salimans (2022)."""

from torch import Tensor


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Push the prediction away from the negative prompt; both (B, C, H, W), of noise or of x0."""
    return uncond + (cond - uncond) * scale
