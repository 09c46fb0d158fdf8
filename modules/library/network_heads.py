"""The first look at a network file: what its metadata call it and what its first tensors are, without parsing the
header. Made for ten thousand files: 64 KiB of each are read, more only where these tell nothing."""

import json
import os
import re
from pathlib import Path

from modules.library import facts
from modules.library.embedding_images import NoEmbedding, read_embedding
from modules.library.facts import Facts
from modules.library.header import MAX_HEADER_BYTES, ModelFileError, open_regular, printable, sniff
from modules.library.network_cache import Looked

FIRST = 64 * 1024  # bytes
METADATA = b'{"__metadata__":{'
TAGS = b'"ss_tag_frequency":"'
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
    return _pickled(path, size, mtime_ns, kind)


def _safetensors(path: str, size: int, mtime_ns: int, kind: str) -> Looked:
    handle = open_regular_path(path)
    try:
        start = os.read(handle, FIRST)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or 8 + length > size or length > MAX_HEADER_BYTES or start[8:9] != b"{":
            problem = sniff(start[:256]) or "damaged or incomplete, or no safetensors file; download it again"
            return Looked(size, mtime_ns, problem=problem)
        missing = _missing(handle, start, length, size)
        if missing:
            problem = f"incomplete: {missing} bytes are missing; still downloading, or download it again"
            return Looked(size, mtime_ns, problem=problem)
        content = facts.content_id(handle, size, start)
        os.lseek(handle, len(start), os.SEEK_SET)
        end = 8  # of the metadata
        if start.startswith(METADATA, 8):
            end = start.find(END, 8, 8 + length) + 1
            if not end and 8 + length > len(start):
                start += os.read(handle, 8 + length - len(start))
                end = start.find(END, 8, 8 + length) + 1
            end = end or 8 + length
        metadata = _metadata(start[8:end] if end > 8 else b"")
        told = _facts(kind, content, metadata, start[end : 8 + length])
        if not told.family and 8 + length > len(start):
            start += os.read(handle, 8 + length - len(start))
            told = _facts(kind, content, metadata, start[end : 8 + length])
    finally:
        os.close(handle)
    if kind != "lora":
        return Looked(size, mtime_ns, facts=told)
    return Looked(
        size,
        mtime_ns,
        alias=printable(metadata.get("ss_output_name", "")) or None,
        trained_for=_version(metadata, end > 8 + len(METADATA) + 1),
        stated_hash=_hash(metadata.get("sshs_model_hash")),
        facts=told,
    )


def _missing(handle: int, start: bytes, length: int, size: int) -> int:
    """Bytes that are not there yet, as the last tensors of the header tell."""
    end = 8 + length
    if end <= len(start):
        last = start[max(8, end - LAST) : end]
    else:
        os.lseek(handle, end - LAST, os.SEEK_SET)
        last = os.read(handle, LAST)
    return max(0, end + max((int(found) for found in _ENDS.findall(last)), default=0) - size)


LAST = 512  # bytes of a header
_ENDS = re.compile(rb'"data_offsets":\s*\[\s*\d{1,15}\s*,\s*(\d{1,15})\s*\]')


def _metadata(raw: bytes) -> dict[str, str]:
    """The texts of `{"__metadata__":{…`; nothing where they are damaged. Words of training pictures, which are most of
    them and not asked for, are not parsed."""
    start = raw.find(TAGS)
    end = raw.find(b'","', start) if start >= 0 else -1  # quotes inside of texts are escaped
    if end >= 0:
        raw = raw[:start] + raw[end + 2 :]
    try:
        found = json.loads(raw + b"}}")["__metadata__"] if raw else {}
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _facts(kind: str, content: str, metadata: dict[str, str], tensors: bytes) -> Facts:
    """`tensors`: what follows the metadata in the header, or the first of it."""
    family = facts.stated_family(metadata)
    return Facts(
        content=content,
        format="safetensors",
        family=family or (facts.family_by_layers(tensors) if kind == "lora" else _embedding(tensors)),
        dtype=facts.dtype_in(tensors),
        prediction="v" if metadata.get("modelspec.prediction_type", "").lower().startswith("v") else "",
        base_model=facts.stated_base(metadata),
        resolution=facts.stated_resolution(metadata),
        kind=kind,
        pictured=facts.pictured(metadata),
    )


def _embedding(tensors: bytes) -> str:
    sizes = re.findall(rb'"(\w+)":\s*\{[^}]*"shape":\s*\[([\d,\s]*)\]', tensors)
    shapes = {name.decode(): tuple(int(side) for side in shape.split(b",") if side.strip()) for name, shape in sizes}
    return facts.family_of(shapes, "embedding")


def _pickled(path: str, size: int, mtime_ns: int, kind: str) -> Looked:
    handle = open_regular_path(path)
    try:
        content = facts.content_id(handle, size, os.read(handle, facts.HEAD))
    finally:
        os.close(handle)
    return Looked(size, mtime_ns, facts=Facts(content=content, format="PyTorch", kind=kind))


def open_regular_path(path: str) -> int:
    """`open_regular` without making a Path, which would cost more than the reading."""
    if not os.path.isfile(path):
        return open_regular(Path(path))
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))


def _version(metadata: dict[str, str], has_metadata: bool) -> str:
    """A1111's guess; a file that says nothing of its base but has metadata is taken for one of SD 1.x."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if has_metadata else "Unknown"


def _hash(text: str | None) -> str | None:
    return text.lower() if text and len(text) == 64 and set(text.lower()) <= set("0123456789abcdef") else None


def _picture(path: str, size: int, mtime_ns: int) -> Looked:
    try:
        found = read_embedding(path)
    except NoEmbedding:
        return Looked(size, mtime_ns, is_network=False)
    name = found.get("name")
    handle = open_regular_path(path)
    try:
        content = facts.content_id(handle, size, os.read(handle, facts.HEAD))
    finally:
        os.close(handle)
    told = Facts(content=content, format="picture", kind="embedding")
    return Looked(size, mtime_ns, name=printable(name) if isinstance(name, str) and name else None, facts=told)
