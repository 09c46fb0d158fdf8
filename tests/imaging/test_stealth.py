import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from modules.imaging.stealth import MAX_BYTES, read_stealth
from tests.ending import ends


def hidden(signature: bytes, payload: bytes, *, length: int | None = None, size: tuple[int, int] = (61, 83)) -> bytes:
    """A PNG with this in its lowest bits."""
    head = signature + (len(payload) * 8 if length is None else length).to_bytes(4, "big")
    bits = np.unpackbits(np.frombuffer(head + payload, np.uint8))
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    lane = pixels[:, :, 3:] if b"png" in signature else pixels[:, :, :3]
    flat = lane.transpose(1, 0, 2).reshape(-1).copy()
    flat[: bits.size] = (flat[: bits.size] & 254) | bits
    lane[...] = flat.reshape(width, height, lane.shape[2]).transpose(1, 0, 2)
    file = io.BytesIO()
    Image.fromarray(pixels if b"png" in signature else pixels[:, :, :3]).save(file, "PNG")
    return file.getvalue()


TEXT = json.dumps({"Software": "NovelAI", "Description": "a 日本 {girl}"})


@pytest.mark.parametrize("kind", [b"stealth_pnginfo", b"stealth_rgbinfo"])
def test_plain(kind: bytes):
    assert read_stealth(hidden(kind, TEXT.encode())) == TEXT


@pytest.mark.parametrize("kind", [b"stealth_pngcomp", b"stealth_rgbcomp"])
def test_packed(kind: bytes):
    assert read_stealth(hidden(kind, gzip.compress(TEXT.encode()))) == TEXT


def test_lossless_webp():
    file = io.BytesIO()
    Image.open(io.BytesIO(hidden(b"stealth_pnginfo", b"text"))).save(file, "WEBP", lossless=True, exact=True)
    assert read_stealth(file.getvalue()) == "text"


def test_nothing_hidden():
    for image in (Image.new("RGB", (64, 64)), Image.new("RGBA", (64, 64)), Image.new("RGB", (1, 1))):
        for kind in ("PNG", "JPEG") if image.mode == "RGB" else ("PNG",):
            file = io.BytesIO()
            image.save(file, kind)
            assert read_stealth(file.getvalue()) == ""


def test_lengths_that_cannot_be():
    for length in (0, 2**32 - 1, 8 * MAX_BYTES, 61 * 83):
        assert read_stealth(hidden(b"stealth_pnginfo", b"x", length=length)) == ""
    assert read_stealth(hidden(b"stealth_pngcomp", b"no gzip")) == ""
    assert read_stealth(b"\x89PNG\r\n\x1a\nbroken") == ""


def test_a_bomb_is_cut():
    packed = gzip.compress(bytes(64 * MAX_BYTES))
    data = hidden(b"stealth_pngcomp", packed, size=(900, 900))
    with ends():
        assert len(read_stealth(data)) == MAX_BYTES
