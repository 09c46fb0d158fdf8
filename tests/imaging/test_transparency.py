import pytest
from PIL import Image

from modules.imaging.transparency import ColourError, colour_of, flatten


def test_transparent_parts_take_the_background():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert list(flatten(image, "#ff8000").get_flattened_data()) == [(255, 128, 0), (10, 20, 30)]
    assert flatten(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    assert flatten(Image.new("LA", (1, 1), (9, 0)), "black").getpixel((0, 0)) == (0, 0, 0)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert flatten(palette, "#010203").getpixel((0, 0)) == (1, 2, 3)
    assert flatten(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("#ffffff", (255, 255, 255)), (" #0f0 ", (0, 255, 0)), ("rgba(1.2, 254.6, 300, 1)", (1, 255, 255))],
)
def test_colours_as_pickers_write_them(text, colour):
    assert colour_of(text) == colour


@pytest.mark.parametrize("text", ["", "no such", "rgb(1,2)", "rgb(a,b,c)", "hsl(", "#12", "rgb(nan,1,1)"])
def test_no_colour(text):
    with pytest.raises(ColourError, match="such as #ffffff"):
        colour_of(text)
