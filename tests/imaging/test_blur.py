import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.imaging.blur import blur_mask, kernel
from tests.imaging.opencv import array, measured


def test_to_the_last_bit_as_opencv():
    for blur in measured()["blurs"]:
        assert blur_mask(array("mask"), blur["sigma"], 0).tolist() == blur["along_x"]
        assert blur_mask(array("mask"), 0, blur["sigma"]).tolist() == blur["along_y"]
    assert len(measured()["blurs"]) == 4


def test_no_blur_is_none_and_one_pixel_stays():
    assert (blur_mask(array("mask"), 0, 0) == array("mask")).all()
    assert blur_mask(np.array([[200]], np.uint8), 64, 64).tolist() == [[200]]


@given(st.floats(0.01, 100))
@settings(deadline=None)
def test_weights_are_symmetric_and_whole(sigma):
    weights = kernel(2 * int(2.5 * sigma + 0.5) + 1, sigma)
    assert sum(weights) == 256 and weights == weights[::-1]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 255), st.floats(0, 40), st.floats(0, 40))
@settings(deadline=None)
def test_an_even_mask_stays_even(width, height, value, x, y):
    assert (blur_mask(np.full((height, width), value, np.uint8), x, y) == value).all()
