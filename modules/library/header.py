"""The header of a safetensors file, checked before any library touches the file: a hostile or broken one is refused
here, in milliseconds, with a sentence that says what it really is. Reads the header only, never a weight."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**48
MAX_QUOTES = 1_500_000  # real ones, outside of strings: what MAX_TENSORS entries and their metadata need, and some

DTYPE_BITS: Mapping[str, int] = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "C128": 128},
    **{
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F4": 4,
    },
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
}


class ModelFileError(ValueError):
    """A model file that cannot be used. `reason` is the sentence without the name; the message has both."""

    def __init__(self, path: Path, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{printable(path.name)}: {reason}")


@dataclass(frozen=True)
class TensorInfo:
    dtype: str  # a key of DTYPE_BITS
    shape: tuple[int, ...]
    start: int  # first byte in the file
    end: int  # first byte after it


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    size: int = 0  # bytes of the whole file


def read_header(path: Path) -> Header:
    """Raises ModelFileError for anything that is not a whole, sound safetensors file."""
    size, length, raw = _read_raw(path)
    try:
        content = _parse(raw)
        metadata = _metadata(content.pop("__metadata__", {}))
        tensors = _tensors(content, 8 + length)
        _check_layout(tensors, 8 + length, size)
    except _Unsound as error:
        raise ModelFileError(path, str(error)) from None
    return Header(tensors, metadata, size)


def header_from(raw: bytes, size: int) -> Header:
    """Of the bytes after the first eight, as they came over the network; `size`: bytes of the whole file. Raises
    ValueError for what is no sound header."""
    try:
        content = _parse(raw)
        metadata = _metadata(content.pop("__metadata__", {}))
        tensors = _tensors(content, 8 + len(raw))
        _check_layout(tensors, 8 + len(raw), size)
    except _Unsound as error:
        raise ValueError(str(error)) from None
    return Header(tensors, metadata, size)


def open_regular(path: Path) -> int:
    """A file descriptor of a regular file; a FIFO, folder or device is refused without waiting for it."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except IsADirectoryError:
        raise ModelFileError(path, "is a folder, not a file") from None
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    raise ModelFileError(path, f"is {kind}, not a file")


def printable(name: str) -> str:
    """The name on one line and in valid Unicode, whatever bytes it has on the disk."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def sniff(start: bytes) -> str | None:
    """What a file really is that calls itself a model, by its first bytes."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")):
        return "this is an HTML page: the download failed, most likely for want of a login; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the model; fetch the real file with `git lfs pull`"
    if start.startswith(b"PK\x03\x04"):
        return "this is a zip archive, most likely a PyTorch checkpoint (.ckpt); convert it to safetensors"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "this is a Python pickle, which can contain code and is never opened; convert it to safetensors"
    if start.startswith(b"GGUF"):
        return "this is a GGUF file: give its name the ending .gguf"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")) or start[8:12] == b"WEBP":
        return "this is a picture, not a model"
    if head.startswith((b"{", b"[")):
        return "this is a JSON text, not a model; the download may have failed"
    if start and not start.strip(b"\0"):
        return "this file holds only zeros: the download was interrupted; download it again"
    return None


class _Unsound(Exception):
    pass


def _read_raw(path: Path) -> tuple[int, int, bytes]:
    handle = open_regular(path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        try:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size < 8 or length > MAX_HEADER_BYTES or length > size - 8:
                raise ModelFileError(path, _not_safetensors(start + file.read(248), size, length))
            raw = file.read(length)
        except OSError as error:
            raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
    if len(raw) < length:
        raise ModelFileError(path, "became shorter while it was read; is it still being copied?")
    if not raw.startswith(b"{"):
        raise ModelFileError(path, sniff(start + raw[:248]) or "corrupt header: it is no JSON object")
    return size, length, raw


def _not_safetensors(start: bytes, size: int, length: int) -> str:
    if size == 0:
        return "this file is empty: the download failed; download it again"
    known = sniff(start)
    if known:
        return known
    if size < 8:
        return f"this file has only {size} bytes: the download failed; download it again"
    if length > MAX_HEADER_BYTES:
        limit = MAX_HEADER_BYTES >> 20
        return f"corrupt header: it claims {length} bytes, the limit is {limit} MiB; damaged, or no safetensors file"
    return f"incomplete: the header alone needs {length} bytes, the file has {size}; download it again"


def _parse(raw: bytes) -> dict[str, Any]:
    if raw.count(b'"') - raw.count(b'\\"') > MAX_QUOTES:
        raise _Unsound(f"corrupt header: more than {MAX_TENSORS} tensors")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise _Unsound(f"corrupt header: no valid JSON ({reason})") from None
    tensors = len(content) - ("__metadata__" in content)
    if tensors > MAX_TENSORS:
        raise _Unsound(f"corrupt header: {tensors} tensors, the limit is {MAX_TENSORS}")
    return dict(content)


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _Unsound("corrupt header: its metadata must be texts by name")
    return value


def _tensors(content: Mapping[str, Any], offset: int) -> dict[str, TensorInfo]:
    tensors = {}
    for name, entry in content.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            bits = DTYPE_BITS[dtype]
        except (KeyError, TypeError, ValueError):
            raise _Unsound(
                f"corrupt header: the entry of {_short(name)} is not dtype, shape and data_offsets"
            ) from None
        if type(shape) is not list or len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
            raise _Unsound(f"corrupt header: the shape of {_short(name)} is no list of sizes")
        if type(start) is not int or type(end) is not int or not 0 <= start <= end:
            raise _Unsound(f"corrupt header: the offsets of {_short(name)} are not two positions in order")
        elements = prod(shape)
        if elements > MAX_ELEMENTS or elements * bits != (end - start) * 8:
            size = "too many" if elements > MAX_ELEMENTS else f"{elements * bits // 8}"
            raise _Unsound(
                f"corrupt header: {_short(name)} needs {size} bytes for its shape, its offsets give {end - start}"
            )
        tensors[name] = TensorInfo(dtype, tuple(shape), offset + start, offset + end)
    if not tensors:
        raise _Unsound("there are no tensors in this file")
    return tensors


def _check_layout(tensors: Mapping[str, TensorInfo], first: int, size: int) -> None:
    """One after another, from the header to the end of the file: nothing hidden, nothing shared, nothing missing."""
    spans = sorted((info.start, info.end) for info in tensors.values())
    last = max(end for _, end in spans)
    if spans[0][0] != first or any(before[1] != after[0] for before, after in pairwise(spans)):
        raise _Unsound("corrupt header: tensors overlap or leave gaps")
    if last > size:
        missing = last - size
        raise _Unsound(f"incomplete: {missing} of {last} bytes are missing; still downloading, or download it again")
    if last < size:
        raise _Unsound(f"corrupt: {size - last} bytes follow after the last tensor")


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "…")
