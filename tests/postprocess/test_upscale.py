import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.imaging.resize import lanczos, resize_image
from modules.postprocess.upscale import PLAIN_UPSCALERS, to_size, upscale


def doubling(calls: list[tuple[int, int]]):
    def enlarge(image: Image.Image, scale: float) -> Image.Image:
        calls.append(image.size)
        return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)

    return enlarge


@pytest.mark.parametrize(
    ("scale", "rounds"), [(2, 1), (1.5, 1), (3, 2), (4, 2), (7, 3), (30, 3), (1, 1)]
)  # a network is applied until it is enough, three times at most; and once where nothing is to grow
def test_how_often_a_network_is_applied(scale, rounds):
    calls: list[tuple[int, int]] = []
    made = upscale(Image.new("RGB", (16, 24)), scale, doubling(calls))
    assert len(calls) == rounds and made.size == (int(16 * scale) // 8 * 8, int(24 * scale) // 8 * 8)


def test_what_does_not_grow_is_not_asked_again():
    calls = []

    def still(image: Image.Image, scale: float) -> Image.Image:
        calls.append(1)
        return image

    assert upscale(Image.new("RGB", (16, 16)), 4, still).size == (64, 64) and len(calls) == 1


def test_plain_ones():
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 0, 255))
    nearest = upscale(image, 8, PLAIN_UPSCALERS["Nearest"])
    assert (
        nearest.size == (16, 8) and nearest.getpixel((7, 3)) == (255, 0, 0) and nearest.getpixel((8, 3)) == (0, 0, 255)
    )
    big = Image.new("RGB", (64, 64), "red")
    assert upscale(big, 2, PLAIN_UPSCALERS["Lanczos"]).tobytes() == lanczos(big, 128, 128).tobytes()
    assert upscale(big, 2, PLAIN_UPSCALERS["None"]).size == (128, 128)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_any_size_in_any_resize_mode(width, height, wide, high):
    for enlarge in (PLAIN_UPSCALERS["Nearest"], doubling([])):
        made = resize_image("Crop and resize", Image.new("RGB", (width, height)), wide * 8, high * 8, to_size(enlarge))
        assert made.size == (wide * 8, high * 8)


def test_too_much_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="512×512 pixels times 64 are too many"):
        upscale(Image.new("RGB", (512, 512)), 64, PLAIN_UPSCALERS["Nearest"])
