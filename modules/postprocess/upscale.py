"""Upscalers by name, with A1111's rules for how often they are applied and what happens to the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from PIL import Image

from modules.imaging.resize import Upscale, lanczos
from modules.library.upscalers import Upscaler, UpscalerLibrary
from modules.postprocess.networks import Network, OnTile, load_network
from modules.settings.schema import Settings

Enlarge = Callable[[Image.Image, float], Image.Image]  # picture, wanted scale -> picture, perhaps of another scale
MAX_ROUNDS = 3
MAX_PIXELS = 2**28  # of what comes out: 16384 × 16384


def _resampled(how: Image.Resampling) -> Enlarge:
    return lambda image, scale: image.resize((int(image.width * scale), int(image.height * scale)), how)


PLAIN_UPSCALERS: Mapping[str, Enlarge] = {
    "None": lambda image, scale: image,
    "Lanczos": _resampled(Image.Resampling.LANCZOS),
    "Nearest": _resampled(Image.Resampling.NEAREST),
}


def upscale(image: Image.Image, scale: float, enlarge: Enlarge) -> Image.Image:
    """So many times as large, rounded down to multiples of 8. Up to three rounds, until it is large enough, even if
    `scale` is 1; then Lanczos to the exact size."""
    width, height = (max(8, int(side * scale) // 8 * 8) for side in image.size)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels times {scale:g} are too many; ask for a smaller scale")
    for number in range(MAX_ROUNDS):
        if image.width >= width and image.height >= height and (number > 0 or scale != 1):
            break
        before = image.size
        image = enlarge(image, scale)
        if image.size == before:
            break
    return image if image.size == (width, height) else lanczos(image, width, height)


def to_size(enlarge: Enlarge) -> Upscale:
    """For modules/imaging/resize.py: upscales to cover the size, then Lanczos to it."""

    def resized(image: Image.Image, width: int, height: int) -> Image.Image:
        scale = max(width / image.width, height / image.height)
        if scale > 1:
            image = upscale(image, scale, enlarge)
        return image if image.size == (width, height) else lanczos(image, width, height)

    return resized


@dataclass
class Upscalers:
    """Upscalers ready to use. Keeps the network that was used last."""

    library: UpscalerLibrary
    device: torch.device
    tile: int = 192  # pixels; 0: no tiles
    overlap: int = 8  # pixels
    on_tile: OnTile | None = None
    _loaded: dict[tuple[str, int, int], Network] = field(default_factory=dict)

    def under(self, settings: Settings, on_tile: OnTile | None = None) -> "Upscalers":
        """The same with these settings; loaded networks are shared."""
        return replace(self, tile=settings.ESRGAN_tile, overlap=settings.ESRGAN_tile_overlap, on_tile=on_tile)

    def get(self, name: str) -> Enlarge:
        """Raises UnknownUpscaler, ModelFileError: sentences."""
        found = self.library.find(name)
        if found.path is None:
            return PLAIN_UPSCALERS[found.name]
        network = self._network(found)
        return lambda image, scale: network.run(image, self.tile, self.overlap, self.on_tile)

    def to_size(self, name: str) -> Upscale:
        return to_size(self.get(name))

    def by_scale(self, name: str) -> Enlarge:
        enlarge = self.get(name)
        return lambda image, scale: upscale(image, scale, enlarge)

    def _network(self, upscaler: Upscaler) -> Network:
        assert upscaler.path is not None
        status = upscaler.path.stat()
        key = str(upscaler.path), status.st_size, status.st_mtime_ns
        if key not in self._loaded:
            self._loaded.clear()
            self._loaded[key] = load_network(upscaler.path, self.device)
        return self._loaded[key]
