"""What a picture's file says about how it was made. Reads bytes under limits, decodes no pixel."""

import io
import struct
import warnings as python_warnings
from dataclasses import dataclass, field

from PIL import Image

from modules.imaging import png
from modules.imaging.decode import DECODER_ERRORS, MAX_PIXELS, ImageError, identify

MAX_COMMENT = 2**20  # bytes

_TECHNICAL = frozenset(
    (
        *(
            "jfif",
            "jfif_version",
            "jfif_unit",
            "jfif_density",
            "dpi",
            "exif",
            "loop",
            "background",
            "timestamp",
            "duration",
        ),
        *("progressive", "progression", "icc_profile", "chromaticity", "photoshop", "gamma", "srgb", "transparency"),
    )
)


@dataclass(frozen=True)
class ImageMetadata:
    infotext: str  # "" where there is none
    items: dict[str, str] = field(default_factory=dict)  # other texts by name, as A1111's png-info calls them
    warnings: tuple[str, ...] = ()  # what was left out, and why


def read_metadata(data: bytes) -> ImageMetadata:
    """Raises ImageError for what is no picture at all; a damaged one gives what can be read."""
    image_format = identify(data)
    if image_format == "PNG":
        found, warnings = png.texts(data)
        try:
            exif = next((bytes(c.data) for c in png.chunks(data) if c.kind == b"eXIf" and c.intact), b"")
        except png.PngDamaged:
            exif = b""
    else:
        found, exif, warnings = _from_pillow(data, image_format)
    comment, cut = user_comment(exif)
    if cut:
        warnings.append("the EXIF comment is too long; it is truncated")
    items = {name: text for name, text in found.items() if name.lower() not in _TECHNICAL}
    items = {**named_tags(exif), **items}
    infotext = items.pop("parameters", "")
    if comment:
        items["exif comment"] = comment
        infotext = comment
    return ImageMetadata(infotext, items, tuple(warnings))


def read_infotext(data: bytes) -> tuple[str, dict[str, str]]:
    """The infotext and the other items: what A1111's png-info answers."""
    metadata = read_metadata(data)
    return metadata.infotext, metadata.items


def user_comment(exif: bytes) -> tuple[str, bool]:
    """The UserComment of an EXIF block, and whether it was cut. Broken blocks have none; no loop, no recursion."""
    block, order, first = _directory(exif)
    if not order:
        return "", False
    pointer = _entry(block, order, first, 0x8769)
    comment = _entry(block, order, pointer[1], 0x9286) if pointer else None
    if comment is None:
        return "", False
    length, offset = comment
    raw = block[offset : offset + min(length, MAX_COMMENT)] if length > 4 else b""
    return _comment_text(raw, order), length > MAX_COMMENT


_TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}
_NAMED = ("prompt", "workflow", "parameters")


def named_tags(exif: bytes) -> dict[str, str]:
    """Texts that other programs keep in an EXIF block. ComfyUI's WebP have them as "prompt:{…}" in the fields of the
    camera; those go by their own name."""
    block, order, first = _directory(exif)
    found: dict[str, str] = {}
    for tag, name in _TAGS.items():
        entry = _entry(block, order, first, tag) if order else None
        if entry is None:
            continue
        length, offset = entry
        raw = block[offset : offset + min(length, MAX_COMMENT)] if length > 4 else b""
        text = raw.decode("utf-8", "replace").rstrip("\0")
        own, colon, rest = text.partition(":")
        if colon and own.lower() in _NAMED:
            found[own.lower()] = rest
        elif text:
            found[name] = text
    return found


def _directory(exif: bytes) -> tuple[bytes, str, int]:
    """The block, its byte order ("" if it is none), and where its first directory is."""
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"MM": ">", b"II": "<"}.get(block[:2], "")
    if not order or len(block) < 8:
        return block, "", 0
    return block, order, struct.unpack_from(order + "I", block, 4)[0]


def _from_pillow(data: bytes, image_format: str) -> tuple[dict[str, str], bytes, list[str]]:
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[image_format]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"the picture is too large: {image.width}×{image.height}")
                info = dict(image.info)
    except ImageError:
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ImageError(
            f"the picture is damaged: its {image_format} header cannot be read ({str(error)[:100]})"
        ) from error
    exif = info.get("exif", b"")
    texts = {}
    for name, value in info.items():
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(name, str) and isinstance(text, str):
            texts[name] = text[:MAX_COMMENT]
    return texts, exif if isinstance(exif, bytes) else b"", []


def _entry(block: bytes, order: str, offset: int, tag: int) -> tuple[int, int] | None:
    """Count and value of one entry of a directory."""
    if offset + 2 > len(block):
        return None
    (count,) = struct.unpack_from(order + "H", block, offset)
    for number in range(min(count, 1000)):
        start = offset + 2 + 12 * number
        if start + 12 > len(block):
            return None
        found, _kind, length, value = struct.unpack_from(order + "HHII", block, start)
        if found == tag:
            return length, value
    return None


def _comment_text(raw: bytes, order: str) -> str:
    code, text = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        return text.decode(_utf16_order(text, order), "replace").removeprefix("\ufeff").rstrip("\0")
    if code == b"JIS\0\0\0\0\0":
        return text.decode("iso2022_jp", "replace").rstrip("\0")
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        return text.decode("utf-8", "replace").rstrip("\0")
    return raw.decode("utf-8", "replace").rstrip("\0")


def _utf16_order(text: bytes, order: str) -> str:
    """A1111 writes big-endian whatever the block says, others follow the block: the order with more ASCII is right."""
    sample = text[:4096]
    if sample[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return "utf-16"
    big, little = sample[0::2].count(0), sample[1::2].count(0)
    if big == little:
        return "utf-16-be" if order == ">" else "utf-16-le"
    return "utf-16-be" if big > little else "utf-16-le"
