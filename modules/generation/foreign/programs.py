"""Which program made a picture, by the texts in its file."""

from collections.abc import Callable, Mapping

from modules.generation.foreign import (
    civitai,
    comfyui,
    draw_things,
    easy_diffusion,
    fooocus,
    invokeai,
    novelai,
    swarmui,
)
from modules.generation.foreign.draft import Foreign

# Some write ComfyUI's graph too: they come first.
READERS: tuple[Callable[[Mapping[str, str]], Foreign | None], ...] = (
    swarmui.read,
    fooocus.read,
    civitai.read,
    novelai.read,
    invokeai.read,
    easy_diffusion.read,
    draw_things.read,
    comfyui.read,
)


def read_foreign(items: Mapping[str, str]) -> Foreign | None:
    """`items` are all texts of a picture by name, the infotext of a PNG under "parameters", an EXIF comment under
    "exif comment". None for pictures of A1111, of ours, and of nobody that we know."""
    for read in READERS[:3]:  # speak in the place of an infotext
        if found := read(items):
            return found
    for key in ("parameters", "exif comment"):
        if "Steps: " in items.get(key, "").rstrip().rpartition("\n")[2]:
            return None
    return next((found for read in READERS[3:] if (found := read(items))), None)
