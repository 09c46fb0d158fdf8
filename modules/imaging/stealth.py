"""Text in the lowest bits of a picture's pixels, where it survives sites that strip metadata: a signature, the length
in bits, the text. Written by NovelAI, and by A1111 with the extension "stealth pnginfo"."""

import zlib
from collections.abc import Iterator

import numpy as np

from modules.imaging.decode import ImageError, decode, identify

MAX_PIXELS = 20_000_000
MAX_BYTES = 2**20  # of the text, also after unpacking

_SIGNATURES = {  # a signature: in the alpha channel or in the colours, packed or not
    b"stealth_pnginfo": ("alpha", False),
    b"stealth_pngcomp": ("alpha", True),
    b"stealth_rgbinfo": ("colours", False),
    b"stealth_rgbcomp": ("colours", True),
}
_START = 8 * 15  # bits of a signature
_LENGTH = 32  # bits


def read_stealth(data: bytes) -> str:
    """ "" where there is none. Decodes the whole picture: ask only where nothing else says how it was made."""
    if identify(data) not in ("PNG", "WEBP"):
        return ""
    try:
        pixels = np.asarray(decode(data, max_pixels=MAX_PIXELS))
    except ImageError:
        return ""
    for lane, channels in _lanes(pixels):
        known = _SIGNATURES.get(_bits(channels, 0, _START))
        if known is None or known[0] != lane:
            continue
        length = int.from_bytes(_bits(channels, _START, _LENGTH), "big")
        if 0 < length <= min(8 * MAX_BYTES, channels.size - _START - _LENGTH):
            return _text(_bits(channels, _START + _LENGTH, length), known[1])
    return ""


def _lanes(pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if pixels.shape[2] == 4:
        yield "alpha", pixels[:, :, 3:]
    yield "colours", pixels[:, :, :3]


def _bits(channels: np.ndarray, start: int, count: int) -> bytes:
    """`count` bits from `start` on, column by column; fewer where the picture ends."""
    a_column = channels.shape[0] * channels.shape[2]
    first, last = start // a_column, -(-(start + count) // a_column)
    lowest = (channels[:, first:last] & 1).transpose(1, 0, 2).ravel()
    return np.packbits(lowest[start - first * a_column :][:count]).tobytes()


def _text(raw: bytes, packed: bool) -> str:
    if packed:
        try:
            raw = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(raw, MAX_BYTES)
        except zlib.error:
            return ""
    return raw.decode("utf-8", "replace")
