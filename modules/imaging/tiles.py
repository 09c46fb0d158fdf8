"""A picture cut into overlapping tiles, and put together again with soft seams: for SD upscale, and for networks that
take one tile at a time."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image

from modules.imaging.resize import Size


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a picture lie. Tiles larger than their picture begin left of it, above it."""

    size: Size  # of the picture
    tile: Size
    overlap: int  # pixels, at least
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.xs) * len(self.ys)

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Row by row. What lies outside of the picture is black."""
        width, height = self.tile
        return [image.crop((x, y, x + width, y + height)) for y in self.ys for x in self.xs]

    def scaled(self, by: int) -> "Tiling":
        """The same tiling of a picture so many times as large."""
        sizes = [(width * by, height * by) for width, height in (self.size, self.tile)]
        xs, ys = tuple(x * by for x in self.xs), tuple(y * by for y in self.ys)
        return Tiling(sizes[0], sizes[1], self.overlap * by, xs, ys)

    def join(self, tiles: list[Image.Image]) -> Image.Image:
        """RGB: tiles fade into their left and upper neighbours over `overlap` pixels. Where a tile is larger than its
        picture, A1111 lets it fade from black; here the first tile of a row is simply there."""
        if len(tiles) != len(self):
            raise ValueError(f"{len(self)} tiles make this picture, got {len(tiles)}")
        width, height = self.tile
        across, down = _ramp((self.overlap, height), 1), _ramp((self.size[0], self.overlap), 0)
        whole = Image.new("RGB", self.size)
        for row, y in enumerate(self.ys):
            stripe = Image.new("RGB", (self.size[0], height))
            for column, x in enumerate(self.xs):
                tile = tiles[row * len(self.xs) + column]
                _faded_in(stripe, tile, (x, 0), across, (self.overlap if column else 0, 0))
            _faded_in(whole, stripe, (0, y), down, (0, self.overlap if row else 0))
        return whole


def tiling(size: Size, tile: Size, overlap: int) -> Tiling:
    """Evenly spread, so that the last tile ends where the picture does."""
    if not 0 <= overlap < min(tile):
        raise ValueError(f"tiles of {tile[0]}×{tile[1]} pixels must overlap by less than a tile, got {overlap}")
    return Tiling(size, tile, overlap, _starts(size[0], tile[0], overlap), _starts(size[1], tile[1], overlap))


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    count = max(1, ceil((length - overlap) / (tile - overlap)))
    if count == 1:
        return (min(0, length - tile),)
    return tuple(number * (length - tile) // (count - 1) for number in range(count))


def _ramp(size: Size, axis: int) -> Image.Image | None:
    """From 0 to nearly 255 along an axis (0: downwards, 1: to the right)."""
    if 0 in size:
        return None
    width, height = size
    steps = (np.arange(size[1 - axis], dtype=np.float32) * 255 / size[1 - axis]).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(steps[:, None] if axis == 0 else steps, (height, width)).copy())


def _faded_in(canvas: Image.Image, piece: Image.Image, place: Size, ramp: Image.Image | None, fading: Size) -> None:
    """Pastes `piece`, of which the first `fading` pixels, in x or in y, fade from what the canvas had before."""
    skip_x, skip_y = fading
    if ramp is not None and fading != (0, 0):
        canvas.paste(piece.crop((0, 0, skip_x or piece.width, skip_y or piece.height)), place, mask=ramp)
    rest = piece.crop((skip_x, skip_y, piece.width, piece.height))
    canvas.paste(rest, (place[0] + skip_x, place[1] + skip_y))
