"""Several pictures in one: the grid that A1111 shows and saves for a batch."""

from collections.abc import Sequence
from math import ceil, floor, sqrt

from PIL import Image


def image_grid(
    images: Sequence[Image.Image], *, rows: int = -1, batch_size: int = 1, prevent_empty_spots: bool = False
) -> Image.Image:
    """Pictures row by row, all cells as large as the first, on black. `rows` is the setting n_rows: -1 is nearly
    square, 0 as many rows as the batch size."""
    if not images:
        raise ValueError("a grid needs at least one picture")
    rows = row_count(len(images), rows, batch_size, prevent_empty_spots)
    columns = ceil(len(images) / rows)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "black")
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid


def row_count(count: int, rows: int, batch_size: int, prevent_empty_spots: bool) -> int:
    if rows == 0:
        rows = batch_size
    elif rows < 0 and prevent_empty_spots:
        rows = next(divisor for divisor in range(floor(sqrt(count)), 0, -1) if count % divisor == 0)
    elif rows < 0:
        rows = round(sqrt(count))
    return max(1, min(rows, count))
