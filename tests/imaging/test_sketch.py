import numpy as np
import pytest
from PIL import Image, ImageChops

from modules.imaging.sketch import sketched


def test_what_changed_is_the_mask():
    original = Image.new("RGB", (64, 64), "white")
    painted = original.copy()
    painted.paste("red", (20, 20, 40, 40))
    start, mask = sketched(painted, original, blur=0)
    assert mask.getbbox() == (20, 20, 40, 40) and mask.getextrema() == (0, 255)
    assert start.tobytes() == painted.tobytes()


def test_transparency_weakens_mask_and_colours():
    original = Image.new("RGB", (64, 64), "white")
    painted = Image.new("RGB", (64, 64), "black")
    start, mask = sketched(painted, original, transparency=50, blur=2)
    assert set(np.unique(np.asarray(mask))) == {127} and start.getpixel((32, 32)) == (128, 128, 128)
    start, mask = sketched(painted, original, transparency=100)
    assert mask.getbbox() is None and ImageChops.difference(start, original).getbbox() is None


def test_sketch_and_original_belong_together():
    with pytest.raises(ValueError, match="of one size, got 8×8 and 9×9"):
        sketched(Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9)))
    start, mask = sketched(Image.new("RGBA", (1, 1)), Image.new("RGB", (1, 1), "black"))
    assert start.getpixel((0, 0)) == (255, 255, 255) and mask.getpixel((0, 0)) == 255
