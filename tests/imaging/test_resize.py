import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.imaging.resize import (
    RESIZE_MODES,
    HiresSizes,
    hires_sizes,
    lanczos,
    old_first_pass,
    resize_image,
    scaled_size,
)


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)).convert(mode)


def test_cropping_keeps_the_middle_and_the_proportions():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    assert set(resize_image("Crop and resize", wide, 100, 100).get_flattened_data()) == {(0, 0, 255)}
    assert (255, 0, 0) in resize_image("Just resize", wide, 100, 100).get_flattened_data()


def test_filling_keeps_all_and_stretches_the_edges():
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (0, 50, 300, 100))
    filled = resize_image("Resize and fill", image, 90, 90)
    assert filled.getpixel((45, 0)) == filled.getpixel((45, 29)) == (255, 0, 0)
    assert filled.getpixel((45, 89)) == filled.getpixel((45, 60)) == (0, 0, 255)
    tall = resize_image("Resize and fill", image.transpose(Image.Transpose.ROTATE_90), 90, 90)
    assert tall.getpixel((0, 45)) == (255, 0, 0) and tall.getpixel((89, 45)) == (0, 0, 255)


def test_only_what_grows_is_upscaled_and_masks_never():
    asked = []

    def upscale(image: Image.Image, width: int, height: int) -> Image.Image:
        asked.append((width, height))
        return lanczos(image, width, height)

    resize_image("Just resize", gradient(64, 64), 128, 32, upscale)
    assert asked == [(128, 32)]
    resize_image("Just resize", gradient(64, 64), 64, 32, upscale)
    resize_image("Just resize", gradient(64, 64, "L"), 128, 128, upscale)
    assert asked == [(128, 32)]


@given(
    mode=st.sampled_from(RESIZE_MODES),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    wanted=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(["RGB", "L", "RGBA"]),
)
@settings(max_examples=80, deadline=None)
def test_any_size_becomes_any_other_without_holes(mode, size, wanted, kind):
    image = Image.new(kind, size, "white")
    resized = resize_image(mode, image, wanted[0] * 8, wanted[1] * 8)
    assert resized.size == (wanted[0] * 8, wanted[1] * 8) and resized.mode == kind
    if mode != "Crop and resize":  # which may leave one line to rounding, as A1111 does
        assert np.asarray(resized).min() == 255


def test_extreme_proportions():
    for size in ((1, 4000), (4000, 1)):
        for mode in RESIZE_MODES:
            assert resize_image(mode, Image.new("RGB", size), 64, 64).size == (64, 64)


def test_resize_by():
    assert scaled_size((201, 150), 1.5) == (301, 225)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"scale": 1.5}, ((128, 192), (192, 288), (192, 288), (0, 0), ("Hires upscale", 1.5))),
        (
            {"resize_x": 192, "resize_y": 192},
            ((128, 192), (192, 288), (192, 192), (0, 12), ("Hires resize", "192x192")),
        ),
        (
            {"resize_x": 256, "resize_y": 512},
            ((128, 192), (341, 512), (256, 512), (10, 0), ("Hires resize", "256x512")),
        ),
        ({"resize_x": 256}, ((128, 192), (256, 384), (256, 384), (0, 0), ("Hires resize", "256x0"))),
        ({"resize_y": 288}, ((128, 192), (192, 288), (192, 288), (0, 0), ("Hires resize", "0x288"))),
        (
            {"final_size_given": True},
            ((448, 640), (134, 192), (128, 192), (0, 0), ("Hires resize", "128x192")),
        ),
    ],
)
def test_sizes_of_hires_fix(arguments, expected):
    assert hires_sizes(128, 192, **arguments) == HiresSizes(*expected)


def test_the_middle_of_what_is_too_much_is_kept():
    rows, columns = hires_sizes(128, 192, resize_x=192, resize_y=192).part(24, 36)
    assert (rows.start, rows.stop) == (6, 30) and (columns.start, columns.stop) == (0, 24)
    odd = HiresSizes((8, 8), (8, 8), (8, 8), (3, 0), ("", ""))
    assert odd.part(10, 4)[1] == slice(1, 8)


@given(st.integers(8, 512), st.integers(8, 512))
@settings(deadline=None)
def test_the_old_first_pass_is_about_as_large_as_it_was(width, height):
    first = old_first_pass(width * 8, height * 8)
    assert first[0] % 64 == first[1] % 64 == 0 and first[0] * first[1] >= 512 * 512


def test_hires_sizes_as_measured(golden):
    for name in ("hires_resize_crop", "hires_old_behavior", "hires_Latent", "hires_second_pass", "hires_None"):
        asked = json.loads((golden / "cases" / f"{name}.json").read_text())["request"]
        sizes = hires_sizes(
            asked["width"],
            asked["height"],
            asked.get("hr_scale", 2.0),
            asked.get("hr_resize_x", 0),
            asked.get("hr_resize_y", 0),
            final_size_given=asked["override_settings"].get("use_old_hires_fix_width_height", False),
        )
        measured = np.load(golden / "cases" / f"{name}.npz")
        assert measured["noise_0"].shape[2:] == (sizes.first[1] // 8, sizes.first[0] // 8)
        rows, columns = sizes.part(sizes.upscaled[0] // 8, sizes.upscaled[1] // 8)
        shape = rows.stop - rows.start, columns.stop - columns.start
        assert measured["noise_1"].shape[2:] == shape == (sizes.target[1] // 8, sizes.target[0] // 8)
