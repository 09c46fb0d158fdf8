"""The first look at a network file: what its metadata call it, without parsing the header or reading a weight."""

import json
import os
from pathlib import Path

from modules.library.embedding_images import NoEmbedding, read_embedding
from modules.library.header import MAX_HEADER_BYTES, ModelFileError, open_regular, printable, sniff
from modules.library.network_cache import Looked

FIRST = 64 * 1024  # bytes
METADATA = b'{"__metadata__":{'
END = b'"},"'  # of the metadata: quotes inside of texts are escaped, so this cannot be within one


def look_at(path: str, kind: str, size: int, mtime_ns: int) -> Looked:
    """Never raises: what is wrong is in `problem`."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".safetensors":
            return _safetensors(path, size, mtime_ns, kind)
        if kind == "embedding" and suffix not in (".pt", ".bin"):
            return _picture(path, size, mtime_ns)
    except OSError as error:
        return Looked(size, mtime_ns, problem=f"cannot be read: {error.strerror or error}")
    except ModelFileError as error:
        return Looked(size, mtime_ns, problem=error.reason)
    if size == 0:
        return Looked(size, mtime_ns, problem="this file is empty: the download failed; download it again")
    return Looked(size, mtime_ns)


def _safetensors(path: str, size: int, mtime_ns: int, kind: str) -> Looked:
    handle = open_regular_path(path)
    try:
        start = os.read(handle, FIRST)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or 8 + length > size or length > MAX_HEADER_BYTES or start[8:9] != b"{":
            problem = sniff(start[:256]) or "damaged or incomplete, or no safetensors file; download it again"
            return Looked(size, mtime_ns, problem=problem)
        if kind != "lora" or not start.startswith(METADATA, 8):
            return Looked(size, mtime_ns)
        end = start.find(END, 8, 8 + length)
        if end < 0 and 8 + length > len(start):
            start += os.read(handle, 8 + length - len(start))
            end = start.find(END, 8, 8 + length)
    finally:
        os.close(handle)
    metadata = start[8 : end + 1 if end >= 0 else 8 + length]
    return Looked(
        size,
        mtime_ns,
        alias=_text(metadata, b"ss_output_name"),
        trained_for=_version(metadata),
        stated_hash=_hash(_text(metadata, b"sshs_model_hash")),
    )


def open_regular_path(path: str) -> int:
    """`open_regular` without making a Path, which would cost more than the reading."""
    if not os.path.isfile(path):
        return open_regular(Path(path))
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))


def _version(metadata: bytes) -> str:
    """A1111's guess; a file that says nothing of its base but has metadata is taken for one of SD 1.x."""
    if (_text(metadata, b"ss_base_model_version") or "").startswith("sdxl_"):
        return "SDXL"
    if _text(metadata, b"ss_v2") == "True":
        return "SD2"
    return "SD1" if len(metadata) > len(METADATA) + 1 else "Unknown"


def _text(metadata: bytes, key: bytes) -> str | None:
    """The value of a key; None if it is missing, empty, or no text."""
    mark = b'"' + key + b'":"'
    start = metadata.find(mark)
    if start < 0:
        return None
    start += len(mark)
    end = start
    while (end := metadata.find(b'"', end)) >= 0:
        raw = metadata[start:end]
        if (len(raw) - len(raw.rstrip(b"\\"))) % 2 == 0:
            try:
                return printable(str(json.loads(b'"' + raw + b'"'))) or None
            except ValueError:
                return None
        end += 1
    return None


def _hash(text: str | None) -> str | None:
    return text.lower() if text and len(text) == 64 and set(text.lower()) <= set("0123456789abcdef") else None


def _picture(path: str, size: int, mtime_ns: int) -> Looked:
    try:
        found = read_embedding(path)
    except NoEmbedding:
        return Looked(size, mtime_ns, is_network=False)
    name = found.get("name")
    return Looked(size, mtime_ns, name=printable(name) if isinstance(name, str) and name else None)
