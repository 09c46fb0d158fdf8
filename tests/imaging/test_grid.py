import pytest
from PIL import Image

from modules.imaging.grid import image_grid, row_count


def colours(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (128, 192), (number + 1, 0, 0)) for number in range(count)]


@pytest.mark.parametrize(("count", "size"), [(3, (256, 384)), (2, (256, 192))])
def test_sizes_as_measured(count: int, size: tuple[int, int]):
    assert image_grid(colours(count)).size == size


def test_pictures_run_row_by_row_and_the_rest_is_black():
    grid = image_grid(colours(3))
    corners = [grid.getpixel(place) for place in ((0, 0), (128, 0), (0, 192), (128, 192))]
    assert corners == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize(
    ("count", "rows", "batch", "full", "expected"),
    [
        (1, -1, 1, False, 1),
        (6, -1, 2, False, 2),
        (8, -1, 4, False, 3),
        (8, -1, 4, True, 2),
        (7, -1, 1, True, 1),
        (8, 0, 4, False, 4),
        (4, 16, 1, False, 4),
        (9, 3, 1, False, 3),
    ],
)
def test_rows(count: int, rows: int, batch: int, full: bool, expected: int):
    assert row_count(count, rows, batch, full) == expected


def test_no_picture_is_no_grid():
    with pytest.raises(ValueError, match="at least one"):
        image_grid([])
