"""What the lists of the page offer: checkpoints, upscalers, VAEs, samplers and styles, as they are now."""

from typing import TYPE_CHECKING

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.library.upscalers import LATENT_UPSCALE_MODES
from modules.library.vaes import AUTOMATIC, NONE

if TYPE_CHECKING:
    from modules.app import App
    from modules.library.checkpoints import Checkpoint

SAMPLERS = [info.name for info in SAMPLER_INFOS]
SCHEDULES = [info.label for info in SCHEDULE_INFOS]


def checkpoints(app: "App") -> tuple[list[str], str | None]:
    """The titles of all checkpoints that can be used, and the one in use."""
    current = selected(app)
    return titles(app), current.title if current else None


def titles(app: "App") -> list[str]:
    return [checkpoint.title for checkpoint in app.library.usable()]


def selected(app: "App") -> "Checkpoint | None":
    try:
        return app.current_checkpoint()
    except ValueError:  # there is none
        return None


def upscalers(app: "App") -> list[str]:
    """For hires fix: on the latent, plain, and the networks that can be used."""
    return [*LATENT_UPSCALE_MODES, *(one.name for one in app.upscalers.list() if one.problem is None)]


def vaes(app: "App") -> list[str]:
    return [AUTOMATIC, NONE, *(one.name for one in app.vaes.list())]


def styles(app: "App") -> list[str]:
    return [style.name for style in app.styles()]
