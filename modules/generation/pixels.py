"""Between tensors of pixels and pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B, 3, H, W) in 0–1."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in 0–1 -> PIL images."""
    # Cut off, not rounded, as A1111 does: pictures can be compared byte for byte.
    array = (pixels * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
