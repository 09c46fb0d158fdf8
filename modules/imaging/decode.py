"""The one decoder of foreign images: PNG, JPEG, WebP and AVIF, nothing else. Size limits come before any pixel is
decoded; whatever is wrong with the bytes ends in an ImageError with a sentence."""

import base64
import binascii
import io
import re
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from modules.imaging import png

MAX_PIXELS = 64_000_000
MAX_SIDE = 32_768  # pixels
MAX_BYTES = 64 * 2**20  # of the file

# What Pillow's decoders raise for broken bytes (found by damaging files at random): the picture is at fault.
DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, RuntimeError, OverflowError, MemoryError),
    *(AssertionError, struct.error, zlib.error),
)

Format = Literal["PNG", "JPEG", "WEBP", "AVIF"]


class ImageError(ValueError):
    """Bytes that are not a picture we take. The message says what they are and what is taken."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A loaded picture in mode RGB or RGBA, the right way up (EXIF orientation), without metadata."""
    image_format = identify(data)
    try:
        if image_format == "PNG":
            _check_size(png.size(data), max_pixels)
            data = png.essential(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limits are checked below, before a pixel is decoded
            with Image.open(io.BytesIO(data), formats=[image_format]) as image:
                _check_size(image.size, max_pixels)
                image.load()
                return _plain(_upright(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"the picture is truncated or corrupt: its {image_format} header cannot be read") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"the picture is truncated or corrupt ({str(error)[:100]})") from error


def decode_base64(text: str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """From base64 or a data URL, as the API and browsers send pictures."""
    return decode(bytes_from_base64(text, max_bytes=max_bytes), max_pixels=max_pixels)


def bytes_from_base64(text: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """White space and missing padding are forgiven; URLs, paths and other alphabets are not. A data URL's type must be
    what its bytes are."""
    if len(text) > max_bytes * 3 // 2 + 1000:
        raise ImageError(f"the picture is too large: at most {max_bytes >> 20} MiB are taken")
    mime = None
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        match = re.fullmatch(r"data:([\w/+.-]*)(?:;[\w=-]+)*;base64", head[:200], re.IGNORECASE)
        if not comma or match is None:
            raise ImageError("the data URL must look like data:image/png;base64,…")
        mime = match[1].lower()
        if mime not in _MIMES:
            raise ImageError(f"the data URL is of type {mime or 'nothing'!r}; only {_TAKEN} are taken")
    elif re.match(r"\s*(?:[a-zA-Z][\w+.-]*:|/[\w.]+/|\\\\|\.\.?/)", text[:200]) and not _looks_like_base64(text):
        raise ImageError("pictures are sent as base64; URLs and paths are not opened")
    data = _unpack(text)
    if len(data) > max_bytes:
        raise ImageError(f"the picture is too large: {len(data) >> 20} MiB, at most {max_bytes >> 20} MiB are taken")
    if mime and _MIMES[mime] != (real := identify(data)):
        raise ImageError(f"the data URL says {mime}, but its bytes are {real}")
    return data


def identify(data: bytes) -> Format:
    """By content, never by name. Raises ImageError."""
    if data.startswith(png.SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis") and features.check("avif"):
        return "AVIF"
    if not data:
        raise ImageError("the picture is empty (0 bytes)")
    raise ImageError(f"this is {_other(data)}; only {_TAKEN} are taken")


_TAKEN = "PNG, JPEG, WebP and AVIF"
_MIMES: dict[str, Format] = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/avif": "AVIF",
}
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"%!PS", "an EPS or PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"8BPS", "a Photoshop file"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"SIMPLE", "a FITS file"),
    (b"\0\0\1\0", "an icon file"),
    (b"BM", "a BMP"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a zip archive"),
)


def _other(data: bytes) -> str:
    for start, name in _OTHERS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        return "a HEIC picture" if brand in ("heic", "heix", "mif1", "msf1") else f"a media file ({brand!r})"
    head = data[:200].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        return "an SVG or a web page"
    return "no picture"


def _looks_like_base64(text: str) -> bool:
    """JPEG's base64 starts with /9j/, which is a path too."""
    return text.startswith("/9j/") and len(text) > 100


def _unpack(text: str) -> bytes:
    try:
        raw = re.sub(r"\s+", "", text).encode("ascii")
        return base64.b64decode(raw.rstrip(b"=") + b"=" * (-len(raw.rstrip(b"=")) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ImageError("the picture must be base64 (alphabet A–Z a–z 0–9 + /), and this text is not") from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        limit = f"{max_pixels / 1e6:g} megapixels and {MAX_SIDE} pixels a side"
        raise ImageError(f"the picture is too large: {width}×{height}, at most {limit} are taken")
    if width < 1 or height < 1:
        raise ImageError(f"the picture is empty: {width}×{height}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except DECODER_ERRORS:
        return image  # a broken EXIF block says nothing about the pixels
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image.transpose(turn) if turn is not None else image


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a channel; Pillow would clip instead of scaling
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    keeps_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    plain = image.convert("RGBA" if keeps_alpha else "RGB")
    plain.info.clear()
    return plain
