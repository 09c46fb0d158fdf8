"""The header of a GGUF file, checked as strictly as a safetensors file's: a hostile or broken one is refused here,
before any library touches the file. Reads the header only, never a weight."""

import os
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO

from modules.library.header import (
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Header,
    ModelFileError,
    TensorInfo,
    open_regular,
    sniff,
)

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 4096  # of the metadata
MAX_NAME_BYTES = 1024
MAX_KEPT_BYTES = 64 * 1024  # of one metadata text; longer ones are passed over
MAX_KEPT_ITEMS = 16  # of one metadata list; longer ones are passed over
MAX_TEXTS = 2**19  # in one metadata list, as the vocabularies of language models are
MAX_DIMENSIONS = 8
MAX_ALIGNMENT = 1 << 16
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # metadata: the shape of a tensor that was folded to fit its blocks

# By their numbers in the file: name, weights in a block, bytes of a block.
TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136)},
}
QUANTISED = frozenset(name for name, block, _ in TYPES.values() if block > 1)

_TEXT, _LIST = 8, 9
_NUMBERS: Mapping[int, str] = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
}


def is_gguf(path: Path) -> bool:
    """By its name."""
    return path.suffix.rstrip().lower() == SUFFIX


def read_gguf_header(path: Path) -> Header:
    """Shapes are as in PyTorch; a folded tensor has its original one. Texts and numbers of the metadata are texts.
    Raises ModelFileError for anything that is not a whole, sound GGUF file."""
    handle = open_regular(path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        try:
            start = file.read(256)
            if not start.startswith(MAGIC):
                raise ModelFileError(path, sniff(start) or _no_gguf(start))
            file.seek(len(MAGIC))
            return _read(_Reader(file, size), size)
        except OSError as error:
            raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
        except _Unsound as error:
            raise ModelFileError(path, str(error)) from None


class _Unsound(Exception):
    pass


def _no_gguf(start: bytes) -> str:
    if not start:
        return "this file is empty: the download failed; download it again"
    return "this is no GGUF file, though it is called so; damaged, or of another kind"


class _Reader:
    """Takes numbers and texts, one after the other; never more than the header may have."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.position = file.tell()

    def take(self, count: int) -> bytes:
        self.skip(count)
        taken = self._file.read(count)
        if len(taken) < count:
            raise _Unsound("became shorter while it was read; is it still being copied?")
        return taken

    def skip(self, count: int) -> None:
        """Counts what follows as read."""
        if self.position + count > MAX_HEADER_BYTES:
            raise _Unsound(f"corrupt header: it is longer than {MAX_HEADER_BYTES >> 20} MiB")
        if self.position + count > self._size:
            raise _Unsound(f"incomplete: its header goes on after the file's {self._size} bytes; download it again")
        self.position += count

    def number(self, form: str) -> int | float:
        value: int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def whole(self, form: str) -> int:
        return int(self.number(form))

    def text(self, limit: int) -> str:
        length = self.whole("<Q")
        if length > limit:
            raise _Unsound(f"corrupt header: it has a text of {length} bytes where at most {limit} are taken")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Unsound("corrupt header: a text in it is no UTF-8") from None

    def passed(self, count: int) -> None:
        self.skip(count)
        self._file.seek(count, os.SEEK_CUR)


def _read(reader: _Reader, size: int) -> Header:
    version = reader.whole("<I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        known = " and ".join(map(str, VERSIONS))
        told = "in the byte order of other machines" if swapped else f"of version {version}"
        raise _Unsound(f"a GGUF file {told}, which is not supported; versions {known}, little-endian, are")
    tensors, entries = reader.whole("<Q"), reader.whole("<Q")
    if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
        raise _Unsound(
            f"corrupt header: {tensors} tensors and {entries} entries of metadata; "
            f"the limits are {MAX_TENSORS} and {MAX_ENTRIES}"
        )
    if tensors == 0:
        raise _Unsound("there are no tensors in this file")
    metadata: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(entries):
        key = reader.text(MAX_NAME_BYTES)
        value = _value(reader, reader.whole("<I"))
        if key.startswith(ORIGINAL_SHAPE) and isinstance(value, tuple):
            shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(map(int, value))
        elif value is not None and not isinstance(value, tuple):
            metadata[key] = str(value)
    infos = [_tensor(reader) for _ in range(tensors)]
    found = _placed(infos, _aligned(reader.position, _alignment(metadata)), _alignment(metadata), shapes)
    if len(found) < tensors:
        raise _Unsound("corrupt header: two tensors have one name")
    _check_layout(found, _alignment(metadata), size)
    return Header(found, metadata, size)


def _value(reader: _Reader, kind: int) -> str | int | float | tuple[float, ...] | None:
    """One value of the metadata; None: it was passed over."""
    if kind in _NUMBERS:
        return reader.number(_NUMBERS[kind])
    if kind == _TEXT:
        return _short_text(reader)
    if kind != _LIST:
        raise _Unsound(f"corrupt header: metadata of an unknown kind, {kind}")
    inner, count = reader.whole("<I"), reader.whole("<Q")
    if inner == _TEXT:
        if count > MAX_TEXTS:
            raise _Unsound(f"corrupt header: a list of {count} texts")
        for _ in range(count):
            reader.passed(reader.whole("<Q"))
        return None
    if inner not in _NUMBERS:
        raise _Unsound(f"corrupt header: a list of an unknown kind, {inner}")
    if count > MAX_KEPT_ITEMS:
        reader.passed(count * struct.calcsize(_NUMBERS[inner]))
        return None
    return tuple(reader.number(_NUMBERS[inner]) for _ in range(count))


def _short_text(reader: _Reader) -> str | None:
    length = reader.whole("<Q")
    if length > MAX_KEPT_BYTES:
        reader.passed(length)
        return None
    return reader.take(length).decode("utf-8", "replace")


def _alignment(metadata: Mapping[str, str]) -> int:
    stated = metadata.get("general.alignment", "32")
    alignment = int(stated) if re.fullmatch(r"\d{1,6}", stated) else 0
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _Unsound(f"corrupt header: its alignment is {stated[:20]!r}; a power of two was expected")
    return alignment


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


# name, type, shape as in the file (the fastest dimension first), offset
_Info = tuple[str, int, tuple[int, ...], int]


def _tensor(reader: _Reader) -> _Info:
    name = reader.text(MAX_NAME_BYTES)
    dimensions = reader.whole("<I")
    if dimensions > MAX_DIMENSIONS:
        raise _Unsound(
            f"corrupt header: {_short(name)} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are taken"
        )
    shape = tuple(reader.whole("<Q") for _ in range(dimensions))
    return name, reader.whole("<I"), shape, reader.whole("<Q")


def _placed(
    infos: list[_Info], first: int, alignment: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorInfo]:
    """`first`: byte of the file from which offsets count."""
    found = {}
    for name, number, sizes, offset in infos:
        if number not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            raise _Unsound(
                f"{_short(name)} is quantised in a way (number {number}) that is not supported; known: {known}"
            )
        kind, block, block_bytes = TYPES[number]
        elements = prod(sizes)
        if elements > MAX_ELEMENTS or (sizes[0] if sizes else 1) % block:
            raise _Unsound(f"corrupt header: the shape of {_short(name)} does not fit blocks of {block} weights")
        if offset % alignment or offset > MAX_ELEMENTS:
            raise _Unsound(f"corrupt header: {_short(name)} starts at {offset}, which is no multiple of {alignment}")
        shape = shapes.get(name, tuple(reversed(sizes)))
        if prod(shape) != elements or any(size < 0 for size in shape):
            raise _Unsound(f"corrupt header: {_short(name)} has {elements} weights, its metadata say {shape}")
        start = first + offset
        found[name] = TensorInfo(kind, shape, start, start + elements // block * block_bytes)
    return found


def _check_layout(tensors: Mapping[str, TensorInfo], alignment: int, size: int) -> None:
    """One after another, each aligned: nothing shared, nothing missing."""
    spans = sorted((info.start, info.end) for info in tensors.values())
    if any(_aligned(before[1], alignment) != after[0] for before, after in pairwise(spans)):
        raise _Unsound("corrupt header: tensors overlap or leave gaps")
    last = spans[-1][1]
    if last > size:
        raise _Unsound(
            f"incomplete: {last - size} of {last} bytes are missing; still downloading, or download it again"
        )


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "…")
