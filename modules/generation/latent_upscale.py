"""Latents enlarged as they are, for hires fix and for the resize mode "Just resize (latent upscale)"."""

from torch import Tensor
from torch.nn.functional import interpolate

from modules.library.upscalers import LATENT_UPSCALE_MODES


def upscale_latent(latent: Tensor, width: int, height: int, name: str = "Latent") -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), in latent cells. `name`: a key of LATENT_UPSCALE_MODES."""
    mode, antialias = LATENT_UPSCALE_MODES[name]
    return interpolate(latent, size=(height, width), mode=mode, antialias=antialias)
