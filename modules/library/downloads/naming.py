"""Names of downloaded files. What a server calls its file is a wish: it never names a folder, hides nothing, and is
legal on Linux, macOS and Windows."""

import re
import unicodedata
from email.message import Message
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

MAX_BYTES = 180  # of a name; .part.json and .civitai.info still fit behind it
MODEL_SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_SEPARATORS = re.compile(r"[/\\\u2044\u2215\uff0f\uff3c\u29f8\u29f9]")  # and what only looks like one
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])")


def safe_name(wish: str) -> str:
    """One file name, at most MAX_BYTES long, with its suffix kept; "" where nothing is left."""
    name = _SEPARATORS.split(unicodedata.normalize("NFC", wish.encode("utf-8", "replace").decode("utf-8")))[-1]
    # Controls, marks that turn the direction of writing, private and unassigned characters.
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C")
    name = _FORBIDDEN.sub("_", name)
    name = re.sub(r"\s+", " ", name).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix) > 12:
        stem, suffix = name, ""
    suffix = f".{suffix}" if suffix else ""
    stem = stem.encode("utf-8")[: MAX_BYTES - len(suffix.encode())].decode("utf-8", "ignore").strip(" .")
    if not stem:
        return ""
    if stem.startswith("-") or _RESERVED.fullmatch(stem.split(".")[0].strip()):
        stem = "_" + stem
    return stem + suffix


def safe_relative(path: str) -> str:
    """The path of one file below a model's folder; "" for one that would lead out of it or hide."""
    parts = path.split("/")
    if len(parts) > 6 or any(not part or part != safe_name(part) for part in parts):
        return ""
    return str(PurePosixPath(*parts))


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def is_model(name: str) -> bool:
    return suffix_of(name) in MODEL_SUFFIXES


def named_by(disposition: str, address: str) -> str:
    """The file's name as the server or its address has it, made safe; "" where neither says one."""
    wish = ""
    if disposition:
        message = Message()
        # http.client reads headers as Latin-1; many servers mean UTF-8
        message["content-disposition"] = _as_utf8(disposition).replace("\r", " ").replace("\n", " ")
        try:
            wish = message.get_filename("") or ""
        except (ValueError, LookupError, UnicodeError):
            wish = ""
    return safe_name(wish) or safe_name(unquote(urlsplit(address).path.rsplit("/", 1)[-1]))


def _as_utf8(text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
