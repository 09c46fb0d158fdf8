"""Pictures that tile: every convolution of UNet and VAE reads on around the picture's edges."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from modules.families.family import Model


@contextmanager
def tiling(model: Model, enabled: bool = True) -> Iterator[None]:
    changed: list[tuple[nn.Conv2d, Any]] = []
    try:
        for name in ("unet", "vae") if enabled else ():
            for module in model.components[name].modules():
                if isinstance(module, nn.Conv2d):
                    changed.append((module, module.padding_mode))
                    module.padding_mode = "circular"
        yield
    finally:
        for module, before in changed:
            module.padding_mode = before
