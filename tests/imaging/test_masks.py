import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.imaging import masks
from modules.imaging.masks import MaskError


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def test_a_mask_is_the_alpha_of_what_is_transparent_else_brightness():
    drawn = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    drawn.putpixel((1, 0), (0, 0, 0, 129))
    drawn.putpixel((2, 0), (255, 255, 255, 128))
    assert list(masks.mask_from(drawn).get_flattened_data()) == [0, 255, 0]
    assert list(masks.mask_from(drawn, rounded=False).get_flattened_data()) == [0, 129, 128]
    soft = Image.new("L", (1, 1), 77)
    assert masks.mask_from(soft).getpixel((0, 0)) == 77  # as A1111: only alpha is rounded here
    assert masks.mask_from(soft.convert("RGBA")).getpixel((0, 0)) == 77
    palette = Image.new("P", (2, 1))
    palette.info["transparency"] = 0
    assert list(masks.mask_from(palette).get_flattened_data()) == [0, 0]


def test_inverted_then_blurred():
    mask = masks.prepared_mask(rectangle((32, 32), (0, 0, 16, 32)), invert=True, blur_x=2)
    row = np.asarray(mask)[5].astype(int)
    assert row[0] == 0 and row[31] == 255 and (np.diff(row) >= 0).all() and 100 < row[15] < 128 < row[16] < 155
    assert (np.asarray(mask) == row).all()


def test_masks_of_another_size():
    mask = rectangle((100, 50), (0, 0, 50, 50))
    assert masks.fit_mask(mask, (100, 50)) == (mask, None)
    fitted, note = masks.fit_mask(mask, (200, 100))
    assert fitted.size == (200, 100) and "100×50" in note and "200×100" in note
    with pytest.raises(MaskError, match="100×50.*50×100.*same proportions"):
        masks.fit_mask(mask, (50, 100))
    assert masks.fit_mask(Image.new("L", (512, 767)), (512, 768))[0].size == (512, 768)


def test_cells_of_the_latent():
    cells = masks.latent_mask(rectangle((64, 32), (0, 0, 30, 32)), 8, 4)
    assert cells.shape == (4, 8) and set(cells.ravel()) == {0.0, 1.0} and cells[0].tolist() == [1] * 4 + [0] * 4
    soft = masks.latent_mask(rectangle((64, 32), (0, 0, 30, 32)), 8, 4, rounded=False)
    assert 0.5 < soft[0, 3] < 1
    assert masks.latent_mask(Image.new("L", (1, 1), 255), 1, 1).tolist() == [[1.0]]


def test_the_region_of_a_mask():
    mask = rectangle((128, 192), (30, 40, 50, 60))
    assert masks.crop_region(mask) == (30, 40, 50, 60)
    assert masks.crop_region(mask, 16) == (14, 24, 66, 76)
    assert masks.crop_region(mask, 10**6) == (0, 0, 128, 192)
    assert masks.crop_region(Image.new("L", (8, 8))) is None


@pytest.mark.parametrize(
    ("region", "wanted", "image", "expected"),
    [
        ((14, 24, 66, 76), (128, 192), (128, 192), (14, 11, 66, 89)),  # grows to both sides
        ((14, 0, 66, 52), (128, 192), (128, 192), (14, 0, 66, 78)),  # moved off the upper border
        ((0, 100, 100, 192), (128, 192), (128, 192), (0, 42, 100, 192)),  # and off the lower one
        ((0, 0, 90, 192), (192, 64), (128, 192), (0, 0, 128, 192)),  # cut where the picture ends
        ((5, 5, 6, 6), (512, 512), (10, 10), (5, 5, 6, 6)),
    ],
)
def test_the_region_in_the_proportions_that_are_painted(region, wanted, image, expected):
    assert masks.expand_region(region, wanted, image) == expected


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_region_stays_in_its_picture_and_keeps_the_mask(data):
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    region = left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    wanted = data.draw(st.integers(8, 256)) * 8, data.draw(st.integers(8, 256)) * 8
    grown = masks.expand_region(region, wanted, (width, height))
    assert 0 <= grown[0] <= left and 0 <= grown[1] <= top
    assert region[2] <= grown[2] <= width and region[3] <= grown[3] <= height


def test_filling_takes_the_colours_around():
    image = Image.new("RGB", (64, 64), "red")
    image.paste("blue", (16, 16, 48, 48))
    filled = masks.fill(image, rectangle((64, 64), (16, 16, 48, 48)))
    assert max(np.abs(np.asarray(filled).astype(int) - (255, 0, 0)).ravel()) <= 2
    assert masks.fill(image, Image.new("L", (64, 64))).tobytes() == image.tobytes()
    assert masks.fill(image, Image.new("L", (64, 64), 255)).getextrema() == ((0, 0),) * 3  # nothing to take from
