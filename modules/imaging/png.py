"""PNG files by their chunks: texts are read under limits, and everything that a decoder does not need is left out, so
that no chunk of a foreign file can harm one."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 2**20  # characters of one text
MAX_TEXTS_TOTAL = 4 * 2**20
MAX_TEXTS = 200

_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")


class PngDamaged(ValueError):
    """The file ends too soon, or a part of it is not what its checksum says."""


@dataclass(frozen=True)
class Chunk:
    kind: bytes
    data: memoryview
    intact: bool  # its checksum holds


def chunks(data: bytes) -> Iterator[Chunk]:
    """All chunks up to IEND. Raises PngDamaged where the file ends before."""
    view, position = memoryview(data), len(SIGNATURE)
    while True:
        if position + 12 > len(data):
            raise PngDamaged("it ends too soon")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if length >= 2**31 or end + 4 > len(data):
            raise PngDamaged("it ends too soon")
        content = view[position + 8 : end]
        yield Chunk(kind, content, zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from(">I", data, end)[0])
        if kind == b"IEND":
            return
        position = end + 4


def size(data: bytes) -> tuple[int, int]:
    """Width and height from the header. Raises PngDamaged."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise PngDamaged("its header is missing")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def essential(data: bytes) -> bytes:
    """The same picture without texts, profiles, animation and what else its pixels do not need."""
    parts = [SIGNATURE]
    for chunk in chunks(data):
        if chunk.kind in _NEEDED:
            if not chunk.intact and chunk.kind != b"eXIf":
                raise PngDamaged("a checksum is wrong")
            if chunk.intact:
                checksum = zlib.crc32(chunk.data, zlib.crc32(chunk.kind))
                parts += [
                    struct.pack(">I4s", len(chunk.data), chunk.kind),
                    bytes(chunk.data),
                    struct.pack(">I", checksum),
                ]
    return b"".join(parts)


def texts(data: bytes) -> tuple[dict[str, str], list[str]]:
    """Texts by keyword, the first of each, and sentences about what was left out."""
    found: dict[str, str] = {}
    warnings: dict[str, None] = {}
    total = 0
    try:
        for chunk in chunks(data):
            if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt"):
                continue
            if len(found) >= MAX_TEXTS or total > MAX_TEXTS_TOTAL:
                warnings["there are more texts in this picture than are read; the rest is left out"] = None
                break
            keyword, text, cut = _text(chunk)
            if cut:
                warnings[f"the text {keyword[:40]!r} is too long or damaged; it is truncated"] = None
            if keyword and keyword not in found:
                found[keyword] = text
                total += len(text)
    except PngDamaged as error:
        warnings[f"this PNG is damaged: {error}; what comes after is left out"] = None
    return found, list(warnings)


def _text(chunk: Chunk) -> tuple[str, str, bool]:
    """Keyword, text, and whether something of it is missing."""
    raw = bytes(chunk.data[: MAX_TEXT * 4])
    keyword, _, rest = raw.partition(b"\0")
    name, cut = keyword[:79].decode("latin-1"), len(chunk.data) > MAX_TEXT * 4 or not chunk.intact
    packed, encoding = chunk.kind == b"zTXt", "latin-1"
    if packed:
        rest = rest[1:]  # compression method
    elif chunk.kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        _language, _, rest = rest[2:].partition(b"\0")
        _translated, _, rest = rest.partition(b"\0")
    if packed:
        rest, whole = _inflate(rest)
        cut |= not whole
    text = rest.decode(encoding, "replace")
    return name, text[:MAX_TEXT], cut or len(text) > MAX_TEXT


def _inflate(packed: bytes) -> tuple[bytes, bool]:
    """At most MAX_TEXT bytes, and whether that is all."""
    machine = zlib.decompressobj()
    try:
        return machine.decompress(packed, MAX_TEXT), machine.eof
    except zlib.error:
        return b"", False
