"""What a file elsewhere is, by its first bytes: its size and name, and of a safetensors file the whole header."""

import re
from dataclasses import dataclass, replace

from modules.library import facts
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import RemoteFile, host_in, status_error
from modules.library.downloads.naming import is_model, named_by, suffix_of
from modules.library.downloads.reach import Answer, Reach
from modules.library.header import MAX_HEADER_BYTES, header_from, sniff

FIRST = 256 * 1024  # bytes
ODD_ENDING = "its ending is none of a model's"


@dataclass(frozen=True)
class Peek:
    file: RemoteFile  # with what was learned
    kind: str = ""
    family: str = ""
    note: str = ""  # what is odd about it


def peek(reach: Reach, file: RemoteFile) -> Peek:
    """Raises DownloadError where there is no such file, or it is not what its name says."""
    with reach.get(file.url, {"Range": f"bytes=0-{FIRST - 1}"}, file.token) as answer:
        if answer.status not in (200, 206):
            raise status_error(answer.status, answer.headers, answer.url)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            host = host_in(answer.url)
            sentence = (
                f"{host} shows a web page there, not a file; paste the link of its download, or put a key for it "
            )
            raise DownloadError(sentence + "into the settings", asks_for=host)
        size = _size(answer)
        name = file.name or named_by(answer.headers.get("content-disposition", ""), answer.url)
        name = name or named_by("", file.url)
        start = answer.read(FIRST)
    file = replace(file, name=name, size=file.size if file.size is not None else size)
    if not name:
        raise DownloadError("neither the link nor the server says what the file is called; give it a name")
    if not is_model(name):
        return Peek(file, note=ODD_ENDING)
    problem = sniff(start[:512])
    if suffix_of(name) == ".gguf":
        return Peek(file, "unet" if start.startswith(b"GGUF") else "")
    if suffix_of(name) != ".safetensors":
        return Peek(file)
    if problem:
        raise DownloadError(f"{name}: {problem}")
    return _safetensors(reach, file, start, size)


def _safetensors(reach: Reach, file: RemoteFile, start: bytes, size: int | None) -> Peek:
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > MAX_HEADER_BYTES:
        raise DownloadError(f"{file.name} is no safetensors file, whatever its name says")
    raw = start[8 : 8 + length]
    if len(raw) < length:
        first = len(start)
        with reach.get(file.url, {"Range": f"bytes={first}-{8 + length - 1}"}, file.token) as answer:
            more = answer.read(length + 8)
            raw += more[first:] if answer.status == 200 else more
    if len(raw) < length or size is None:
        return Peek(file, note="its header could not be read beforehand")
    try:
        found = facts.of_header(header_from(raw[:length], size))
    except ValueError as error:
        raise DownloadError(f"{file.name}: {error}") from None
    return Peek(file, found.kind, found.family)


def _size(answer: Answer) -> int | None:
    if answer.status == 206:
        found = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", answer.headers.get("content-range", "").strip())
        return int(found[1]) if found else None
    length = answer.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None
