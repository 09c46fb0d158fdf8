"""Where each kind of model belongs: the first of the folders in which it is looked for."""

from pathlib import Path

from modules.library.roots import Roots


def homes_from(roots: Roots) -> dict[str, Path]:
    """A UNet without its other parts goes where checkpoints are chosen from."""
    return {kind: roots["checkpoint" if kind == "unet" else kind][0].path for kind in roots}
