"""Soft inpainting in the latent: original and new are mixed by a mask that the noise level hardens, and the mixture
keeps the length of its parts, so that the transition does not turn grey."""

import torch
from torch import Tensor


def soft_mask(mask: Tensor, sigma: Tensor | float, power: float, scale: float) -> Tensor:
    """mask: 0–1, 1 where the picture is new -> the same for this noise level. `power`: the schedule bias; `scale`: the
    preservation strength."""
    hardened: Tensor = mask ** (sigma**power * scale)
    return hardened


def blend(original: Tensor, new: Tensor, mask: Tensor, contrast_boost: float) -> Tensor:
    """(B, C, H, W) each, `mask` broadcastable. A `contrast_boost` above 1 leans to the longer of the two vectors."""
    mixed = original * (1 - mask) + new * mask
    length = mixed.double().norm(dim=1, keepdim=True) + 1e-5
    weight = mask[:, :1].double()
    longer = original.double().norm(dim=1, keepdim=True) ** contrast_boost * (1 - weight)
    longer = longer + new.double().norm(dim=1, keepdim=True) ** contrast_boost * weight
    scaled: Tensor = mixed * (longer ** (1 / contrast_boost) / length)
    return scaled.to(mixed.dtype)


def distance(original: Tensor, new: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W): how far the latent moved in each cell."""
    moved: Tensor = torch.linalg.vector_norm((new - original).float(), dim=1)
    return moved
