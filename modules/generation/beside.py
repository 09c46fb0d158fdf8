"""What some UNets take beside the latent: the mask and the masked picture (inpainting checkpoints, 5 channels), or the
picture itself (instruct-pix2pix, 4)."""

import torch
from torch import Tensor

from modules.families.family import EDITING, INPAINTING, Model
from modules.generation.initial import Initial
from modules.generation.pixels import to_tensor


def beside_for(
    model: Model, batch: int, height: int, width: int, initial: Initial | None, mask_weight: float
) -> Tensor | None:
    """(B, model.image_channels, H/8, W/8). `height`, `width`: pixels; `mask_weight` (0–1): the setting
    inpainting_mask_weight, 0 shows the model what is under the mask."""
    factor = model.latent.factor
    shape = (batch, model.latent.channels, height // factor, width // factor)
    if model.image_channels == EDITING:
        if initial is None:
            return torch.zeros(shape, device=model.device)
        return model.encode_image(to_tensor(initial.sources), torch.zeros(shape)) / model.latent.scale
    if model.image_channels != INPAINTING:
        return None
    if initial is None:  # a mask over all, and a grey picture below it
        pixels, mask = torch.full((batch, 3, height, width), 0.5), torch.ones(1, 1, height, width)
    else:
        pixels, mask = to_tensor(initial.sources), full_mask(initial, height, width)
    # A1111 covers the picture with black in its range of -1 to 1, which is grey.
    covered = (pixels - 0.5) * (1 - mask) + 0.5
    shown = torch.lerp(pixels, covered, mask_weight)
    latent = model.encode_image(shown, torch.zeros(shape))
    cells = torch.nn.functional.interpolate(mask, size=shape[2:]).expand(batch, -1, -1, -1)
    return torch.cat([cells.to(latent), latent], dim=1)


def full_mask(initial: Initial, height: int, width: int) -> Tensor:
    """(1, 1, height, width): 1 where the picture is new."""
    if initial.painting is None:
        return torch.ones(1, 1, height, width)
    mask = to_tensor([initial.painting.mask.convert("RGB")])[:, :1]
    return mask if initial.soft else mask.round()
