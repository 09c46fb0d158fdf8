"""Textual inversions that A1111 hid in pictures: as text of the picture (base64 of JSON), or in the low bits of its
edges. Gives the plain data with tensors as nested lists; knows no torch."""

import base64
import binascii
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modules.imaging import png
from modules.imaging.decode import MAX_BYTES, ImageError, decode

TEXT_KEY = b"sd-ti-embedding"
TENSOR = "TORCHTENSOR"  # {"TORCHTENSOR": nested lists} stands for a tensor
MAX_JSON = 64 * 2**20  # bytes

Bytes2D = NDArray[np.uint8]


class NoEmbedding(ValueError):
    """The picture is only a picture, or what it hides is damaged."""


def read_embedding(path: str) -> dict[str, Any]:
    """What A1111's .pt files hold: name, step, string_to_param …. Raises NoEmbedding, or OSError."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NoEmbedding("the picture is too large")
    text = _text(data)
    if text is not None:
        return _from_json(text)
    try:
        pixels = np.asarray(decode(data).convert("RGB"))
    except ImageError as error:
        raise NoEmbedding(str(error)) from error
    return _from_json(_from_pixels(pixels))


def _text(data: bytes) -> bytes | None:
    if not data.startswith(png.SIGNATURE):
        return None
    try:
        for chunk in png.chunks(data):
            if chunk.kind == b"tEXt" and bytes(chunk.data[: len(TEXT_KEY) + 1]) == TEXT_KEY + b"\0":
                return base64.b64decode(bytes(chunk.data[len(TEXT_KEY) + 1 :]))
    except (png.PngDamaged, binascii.Error) as error:
        raise NoEmbedding(f"the picture is damaged: {error}") from error
    return None


def _from_pixels(pixels: Bytes2D) -> bytes:
    """pixels: (H, W, 3). Left of the picture stand the low halves of the bytes, right of it the high halves, each in
    the low four bits; a black column is between, and both are masked by a fixed sequence."""
    lit: NDArray[np.bool_] = np.all(pixels > 0, axis=2)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not len(rows):
        raise NoEmbedding("the picture is black")
    halves = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(halves.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        raise NoEmbedding("no data beside the picture")
    low, high = halves[:, : black.min()], halves[:, black.max() + 1 :]
    if low.size == 0 or low.shape != high.shape:
        raise NoEmbedding("no data beside the picture")
    mask = _mask(low.size).reshape(low.shape)
    packed = ((high ^ mask) << 4) | (low ^ mask)
    unpack = zlib.decompressobj()
    try:
        data = unpack.decompress(packed.tobytes(), MAX_JSON)
    except zlib.error as error:
        raise NoEmbedding("what stands beside the picture is no data") from error
    if not unpack.eof:
        raise NoEmbedding("its data are incomplete or too long")
    return data


def _mask(size: int) -> Bytes2D:
    """The linear congruential generator of Numerical Recipes, begun at 0, modulo 255, low four bits."""
    factor, added = 1664525, 1013904223
    states = np.array([added], dtype=np.uint64)  # the first state; each round appends as many as there are
    while len(states) < size:
        states = np.concatenate([states, (states * np.uint64(factor) + np.uint64(added)) & np.uint64(0xFFFFFFFF)])
        factor, added = factor * factor % 2**32, (factor * added + added) % 2**32
    values: Bytes2D = (states[:size] % np.uint64(255)).astype(np.uint8) & 0x0F
    return values


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoEmbedding("what it hides is no JSON") from error
    if not isinstance(loaded, dict):
        raise NoEmbedding("what it hides is no embedding")
    return loaded
