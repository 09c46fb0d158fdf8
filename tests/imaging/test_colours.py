import numpy as np
from PIL import Image

from modules.imaging.colours import corrected, match_histograms, to_lab, to_rgb, with_luminosity
from tests.imaging.opencv import array


def test_lab_as_opencv():
    assert (to_lab(array("rgb")) == array("lab")).all()
    assert (to_rgb(array("any_lab")) == array("any_rgb")).all()


def test_corrected_as_a1111():
    ours = corrected(Image.fromarray(array("image")), Image.fromarray(array("target")))
    assert np.abs(np.asarray(ours).astype(int) - array("corrected")).max() <= 1


def test_a_picture_matched_to_itself_stays():
    lab = to_lab(array("image"))
    assert (match_histograms(lab, lab) == lab).all()


def test_colour_of_one_brightness_of_the_other():
    red, grey = np.full((1, 1, 3), (200, 0, 0), np.uint8), np.full((1, 1, 3), 128, np.uint8)
    (pixel,) = with_luminosity(red, grey)[0]
    assert abs(float(pixel @ np.array([0.299, 0.587, 0.114])) - 128) < 1 and pixel[0] > pixel[1] == pixel[2]
    black = np.zeros((1, 1, 3), np.uint8)
    assert (with_luminosity(red, black) == 0).all() and (with_luminosity(black, red + 55) >= 0).all()


def test_one_pixel_and_flat_colours():
    flat = Image.new("RGB", (1, 1), (10, 200, 30))
    assert corrected(flat, Image.new("RGB", (3, 2), "black")).size == (1, 1)
    assert corrected(Image.new("RGB", (5, 4)), flat).getextrema() == ((0, 0),) * 3
