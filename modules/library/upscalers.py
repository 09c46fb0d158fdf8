"""Which upscalers there are. Torch-free: what they do is modules/postprocess and modules/generation."""

from collections.abc import Mapping

LATENT_UPSCALE_MODES: Mapping[str, tuple[str, bool]] = {  # torch's interpolation, with or without antialiasing
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
