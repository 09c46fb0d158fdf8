import base64
import io
import resource
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from modules.imaging.decode import ImageError, bytes_from_base64, decode, decode_base64, identify
from modules.imaging.png import SIGNATURE
from tests.ending import ends
from tests.golden import DATA

FORMATS = ["PNG", "JPEG", "WEBP"] + (["AVIF"] if features.check("avif") else [])


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    pixels = np.arange(size[0] * size[1] * 4, dtype=np.uint32) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8).reshape(size[1], size[0], 4), "RGBA").convert(mode)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *middle: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + head + b"".join(middle) + chunk(b"IEND", b"")


def pixels(width: int, height: int, colour: int = 2) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(width * (3 if colour == 2 else 1))) * height))


def test_what_is_taken():
    for image_format in FORMATS:
        image = decode(encoded(picture(), image_format))
        assert (image.mode, image.size, image.info) == ("RGB", (12, 8), {})
    image = decode((DATA / "a1111" / "base.png").read_bytes())
    assert image.size == (128, 192)


def test_pixels_are_kept():
    assert decode(encoded(picture("RGBA"), "PNG")).tobytes() == picture("RGBA").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_all_modes_of_png(mode: str):
    if mode == "I;16":
        wide = (np.arange(96, dtype=np.uint16).reshape(8, 12) * 600).astype(np.uint16)
        image = decode(encoded(Image.fromarray(wide), "PNG"))
        assert np.array_equal(np.asarray(image)[..., 0], (wide >> 8).astype(np.uint8))
    else:
        image = decode(encoded(picture(mode), "PNG"))
    assert image.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB") and image.size == (12, 8)


def test_transparent_palette_and_cmyk():
    palette = picture("RGB").convert("P")
    assert decode(encoded(palette, "PNG")).mode == "RGB"
    assert decode(encoded(palette, "PNG", transparency=3)).mode == "RGBA"
    assert decode(encoded(picture("RGB").convert("CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 16384), (16384, 1)])
def test_extreme_shapes(size: tuple[int, int]):
    assert decode(encoded(Image.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(image_format: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its left side: turn right
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))
    upright = decode(encoded(image, image_format, exif=exif))
    assert upright.size == (16, 32)
    top, bottom = upright.getpixel((8, 4)), upright.getpixel((8, 28))
    assert top[2] > 200 > 60 > top[0] and bottom[0] > 200 > 60 > bottom[2]  # type: ignore[index]


def test_broken_exif_and_colour_profile_do_no_harm():
    assert decode(encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == (12, 8)
    assert decode(encoded(picture(), "PNG", icc_profile=b"no profile")).size == (12, 8)
    assert decode(encoded(picture(), "JPEG", icc_profile=b"no profile")).size == (12, 8)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GIF89a", "GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "EPS"),
        (b"8BPS", "Photoshop"),
        (b"II*\0", "TIFF"),
        (b"SIMPLE  =", "FITS"),
        (b"<svg xmlns=", "SVG"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"BM", "BMP"),
        (b"", "empty"),
        (b"hello", "no picture"),
    ],
)
def test_nothing_else_is_opened(start: bytes, name: str):
    with pytest.raises(ImageError, match=name):
        decode(start + bytes(100) if start else b"")


def refused(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            decode(data)
    return str(caught.value)


@pytest.mark.parametrize("image_format", FORMATS)
def test_truncated_at_any_place(image_format: str):
    data = encoded(picture("RGB", (64, 48)), image_format)
    for cut in range(0, len(data) - 3, max(1, len(data) // 40)):
        try:
            image = decode(data[:cut])
        except ImageError as error:
            assert str(error)
        else:
            assert image_format in ("JPEG", "AVIF") and image.size == (64, 48)  # only padding was missing
    assert "truncated" in refused(data[: len(data) // 2])


def test_a_wrong_checksum_and_a_lying_header():
    data = bytearray(encoded(picture(), "PNG"))
    data[data.index(b"IDAT") + 6] ^= 1
    assert "truncated or corrupt (a checksum is wrong)" in refused(bytes(data))
    assert "too large: 13000×13000" in refused(png(13000, 13000, chunk(b"IDAT", b"0123456789")))
    assert "truncated or corrupt" in refused(png(2000, 2000, chunk(b"IDAT", b"0123456789")))
    assert "too large" in refused(png(2**31 - 1, 2**31 - 1))
    assert "empty" in refused(png(0, 5))
    assert "header is missing" in refused(SIGNATURE + bytes(40))


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = png(13300, 13300, chunk(b"IDAT", zlib.compress(bytes(1664 * 13300))), depth=1, colour=0)
    assert len(bomb) < 30_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "too large: 13300×13300" in refused(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


def test_a_lossy_bomb_is_refused_by_its_header():
    jpeg = bytearray(encoded(Image.new("L", (16, 16)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, 60000, 60000)
    assert "too large" in refused(bytes(jpeg))


def test_text_bombs_and_ten_thousand_chunks_leave_the_picture():
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50_000_000)))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))
    many = b"".join(chunk(b"tEXt", b"k%d\0v" % number) for number in range(10_000))
    with ends():
        assert decode(png(4, 4, bomb, profile, many, pixels(4, 4))).size == (4, 4)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12))
def test_any_damage_gives_a_picture_or_a_sentence(image_format: str, damage: list[tuple[int, int]]):
    data = bytearray(_SOUND[image_format])
    for position, value in damage:
        data[position % len(data)] = value
    try:
        image = decode(bytes(data), max_pixels=100_000)
    except ImageError as error:
        assert 10 < len(str(error)) < 400
    else:
        assert image.mode in ("RGB", "RGBA")


_SOUND = {name: encoded(picture("RGB", (40, 30)), name) for name in FORMATS}


def test_base64_as_clients_send_it():
    data = encoded(picture(), "PNG")
    text = base64.b64encode(data).decode()
    for form in (text, text.rstrip("="), "\n".join(text[i : i + 76] for i in range(0, len(text), 76)), f"  {text}\r\n"):
        assert bytes_from_base64(form) == data
    for form in (f"data:image/png;base64,{text}", f"DATA:image/png;charset=utf-8;base64,{text}"):
        assert decode_base64(form).size == (12, 8)
    jpeg = base64.b64encode(encoded(picture(), "JPEG")).decode()
    assert jpeg.startswith("/9j/") and decode_base64(jpeg).size == (12, 8)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("%%%", "base64"),
        ("", "empty"),
        ("日本", "base64"),
        ("_-_-", "base64"),
        ("data:image/png;base64", "data URL"),
        ("data:image/png,rawbytes", "data URL"),
        ("data:text/html;base64,PGI+", "only PNG, JPEG, WebP and AVIF"),
        ("http://169.254.169.254/latest", "URLs and paths are not opened"),
        ("http://[::ffff:127.0.0.1]/", "URLs and paths are not opened"),
        ("file:///etc/passwd", "URLs and paths are not opened"),
        ("/etc/passwd", "URLs and paths are not opened"),
        (r"\\host\share", "URLs and paths are not opened"),
        ("../../x.png", "URLs and paths are not opened"),
    ],
)
def test_what_is_no_base64(text: str, word: str):
    with pytest.raises(ImageError, match=word):
        decode_base64(text)


def test_a_data_url_must_not_lie():
    text = base64.b64encode(encoded(picture(), "JPEG")).decode()
    with pytest.raises(ImageError, match="says image/png, but its bytes are JPEG"):
        decode_base64(f"data:image/png;base64,{text}")


def test_too_many_bytes():
    with pytest.raises(ImageError, match="too large"):
        decode_base64("A" * 20_000, max_bytes=10_000)
    assert identify(encoded(picture(), "PNG")) == "PNG"
