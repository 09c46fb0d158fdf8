"""One file from the network to the disk: into NAME.part, continued where it stopped, counted and hashed, and never
called done before size and hash are right. Knows no sources and no folders."""

import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from modules.library.downloads.errors import DownloadError, Stopped, WrongContent, has_secrets, without_secrets
from modules.library.downloads.naming import is_model
from modules.library.downloads.reach import Answer, Patience, Reach
from modules.library.header import sniff

log = logging.getLogger(__name__)

HASHED_AT_ONCE = 4 * 2**20  # bytes
LEFT_FREE = 256 * 2**20  # bytes of the disk that stay free
MOST_BYTES = 512 * 2**30  # of one file
PROGRESS = 2**20  # bytes: a try that brought so much was no failure
SNIFFED = 512  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched. `token` opens its first host only, and is never written anywhere."""

    url: str
    name: str  # safe; for one of many: its path below their folder
    size: int | None = None
    sha256: str | None = None
    total: int | None = None  # bytes, as the server said when its .part was begun; `size` is what was promised before
    etag: str | None = None  # of that same answer
    modified: str | None = None
    token: str | None = None

    def as_state(self) -> dict[str, Any]:
        """What of it may be written down."""
        kept = {key: value for key, value in asdict(self).items() if key != "token" and value is not None}
        return kept | {"url": without_secrets(self.url), "keyless": has_secrets(self.url)}


class Watch:
    """How far one file is: `moved(bytes, of)` as they come, `hashed` the same for those that are there and are read
    again; `note` says what the user should know; `learned` what the server says of the file."""

    def __init__(
        self,
        moved: Callable[[int, int | None], None] = lambda have, total: None,
        note: Callable[[str], None] = lambda sentence: None,
        learned: Callable[[RemoteFile], None] = lambda file: None,
        hashed: Callable[[int, int | None], None] = lambda have, total: None,
    ):
        self.moved, self.note, self.learned, self.hashed = moved, note, learned, hashed
        self.stopped = threading.Event()
        self._cut: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def stop(self) -> None:
        """From any thread: a connection that waits for bytes is cut."""
        with self._lock:
            self.stopped.set()
            if self._cut:
                self._cut()

    def holding(self, cut: Callable[[], None] | None) -> None:
        with self._lock:
            self._cut = cut
            if cut and self.stopped.is_set():
                cut()

    def check(self) -> None:
        if self.stopped.is_set():
            raise Stopped


def fetch(reach: Reach, file: RemoteFile, part: Path, watch: Watch) -> str:
    """The whole file is in `part` when this returns its sha256. Raises DownloadError or Stopped; the part stays."""
    failures = 0

    def learn(news: RemoteFile) -> None:
        nonlocal file
        file = news
        watch.learned(news)

    with Part(part) as kept:
        while True:
            begun = kept.size
            try:
                watch.check()
                _one_try(reach, file, kept, watch, learn)
                return kept.finished(file)
            except DownloadError as error:
                watch.check()  # cutting the connection looks like an error
                if not error.again:
                    raise
                failures = 1 if kept.size - begun >= PROGRESS else failures + 1
                _wait(error, failures, reach.patience, watch)
            finally:
                watch.holding(None)


class Part:
    """The bytes that are there, and their hash as far as it was computed."""

    def __init__(self, path: Path):
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        except OSError as error:
            raise disk_error(error) from None
        self.size = os.fstat(self._file.fileno()).st_size
        self._digest, self._hashed = hashlib.sha256(), 0
        self.start = b""

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()
        except OSError as failed:
            log.warning("%s could not be closed: %s", self.path.name, failed.strerror)

    def hash_what_is_there(self, watch: Watch, total: int | None) -> None:
        self._file.seek(self._hashed)
        while self._hashed < self.size:
            watch.check()
            piece = self._file.read(min(HASHED_AT_ONCE, self.size - self._hashed))
            if not piece:
                raise DownloadError("the part on the disk became shorter; try again", again=True)
            self._take(piece)
            watch.hashed(self._hashed, total)

    def append(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError as error:
            self.size = os.fstat(self._file.fileno()).st_size
            raise disk_error(error) from None
        self.size += len(piece)
        self._take(piece)

    def _take(self, piece: bytes) -> None:
        if len(self.start) < SNIFFED:
            self.start = (self.start + piece)[:SNIFFED]
        self._digest.update(piece)
        self._hashed += len(piece)

    def ready(self) -> None:
        self._file.seek(self.size)

    def empty(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.size, self._hashed, self._digest, self.start = 0, 0, hashlib.sha256(), b""

    def finished(self, file: RemoteFile) -> str:
        """Raises DownloadError for bytes that are not those that were promised."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error) from None
        found = self._digest.hexdigest()
        if file.size is not None and self.size != file.size:
            raise WrongContent(
                f"{file.name} has {self.size} bytes, {file.size} were promised; it is not kept as a model"
            )
        if self.size == 0:
            raise WrongContent(f"{file.name}: the server sent an empty file")
        if problem := wrong_content(self.start, file):
            raise WrongContent(problem)
        if file.sha256 and found != file.sha256:
            raise WrongContent(
                f"{file.name} is not what was promised: its SHA-256 begins with {found[:10]}, it should with "
                f"{file.sha256[:10]}; it is not kept as a model. Starting it again fetches it anew"
            )
        return found


def _one_try(reach: Reach, file: RemoteFile, part: Part, watch: Watch, learn: Callable[[RemoteFile], None]) -> None:
    """Brings the rest of the file."""
    whole = file.size if file.size is not None else file.total
    if whole is not None and part.size > whole:
        part.empty()
    is_whole = whole is not None and part.size == whole
    if part.size and not (is_whole or file.sha256 or file.etag or file.modified):
        part.empty()  # nothing could tell whether the rest belongs to it
    part.hash_what_is_there(watch, whole)
    if is_whole:
        return
    with reach.get(file.url, _range_headers(file, part.size), file.token) as answer:
        watch.holding(answer.cut)
        if answer.status == 416 and part.size:
            part.empty()
            raise DownloadError("the server does not have that much of the file; it starts anew", again=True)
        if answer.status not in (200, 206):
            raise status_error(answer.status, answer.headers, answer.url)
        total = _begin(answer, file, part, watch)
        etag, modified = _validators(answer)
        learn(replace(file, etag=etag, modified=modified, total=total))
        check_space(part.path.parent, (total or 0) - part.size)
        _receive(answer, file, part, total, watch, reach.patience)
    if total is not None and part.size < total:
        raise DownloadError(f"the connection ended at {part.size} of {total} bytes", again=True)


def _range_headers(file: RemoteFile, have: int) -> dict[str, str]:
    if not have:
        return {}
    validator = file.etag or file.modified
    return {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})


def _begin(answer: Answer, file: RemoteFile, part: Part, watch: Watch) -> int | None:
    """Where the answer starts, and how large the whole will be. Empties a part that does not fit."""
    length = _whole_number(answer.headers.get("content-length"))
    encoding = answer.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", ""):
        raise DownloadError(f"the server sends the file packed ({encoding[:20]}), which cannot be continued or checked")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") and not file.name.lower().endswith((".html", ".htm")):
        raise DownloadError(
            "a web page came instead of the file: the host wants a login. Put your key for it into the settings, or "
            "accept the model's terms on its page", asks_for=host_in(answer.url))  # fmt: skip
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("content-range", "").strip())
        if found is None or int(found[1]) != part.size or _changed(answer, file):
            part.empty()
            raise DownloadError(
                "the server answers with another part of the file than asked; it starts anew", again=True
            )
        total = int(found[3]) if found[3] != "*" else None
    else:
        if part.size:
            why = (
                "the file on the server has changed" if _changed(answer, file) else "the server cannot continue a file"
            )
            watch.note(f"{why}; it starts anew")
            part.empty()
        total = length
    if total is not None and total > MOST_BYTES:
        raise DownloadError(f"the file has {total >> 30} GiB; the limit is {MOST_BYTES >> 30} GiB")
    if file.size is not None and total is not None and total != file.size:
        raise DownloadError(
            f"the server's file has {total} bytes, {file.size} were promised; it may have been replaced"
        )
    part.ready()
    return total if total is not None else file.size


def _changed(answer: Answer, file: RemoteFile) -> bool:
    etag, modified = _validators(answer)
    if file.etag:
        return etag is not None and etag != file.etag
    return file.modified is not None and modified != file.modified


def _validators(answer: Answer) -> tuple[str | None, str | None]:
    """A strong ETag, and else the date. Weak ones do not promise the same bytes."""
    etag, modified = answer.headers.get("etag"), answer.headers.get("last-modified")
    strong = etag if etag and re.fullmatch(r'"[\x21\x23-\x7e]{1,256}"', etag) else None
    dated = modified if modified and len(modified) < 64 and modified.isascii() and modified.isprintable() else None
    return strong, dated


def _receive(answer: Answer, file: RemoteFile, part: Part, total: int | None, watch: Watch, patience: Patience) -> None:
    since, mark, checked = time.monotonic(), part.size, part.size
    sniffed = False
    for piece in answer.pieces:
        watch.check()
        most = total if total is not None else MOST_BYTES
        if part.size + len(piece) > most:
            raise DownloadError(f"the server sends more than the {most} bytes that it promised; that is refused")
        part.append(piece)
        if not sniffed and part.size >= SNIFFED:
            sniffed = True
            if problem := wrong_content(part.start, file):
                raise WrongContent(problem, asks_for=host_in(answer.url) if "HTML" in problem else "")
        watch.moved(part.size, total)
        now = time.monotonic()
        if now - since >= patience.slow_s:
            if (part.size - mark) / (now - since) < patience.least_rate:
                raise DownloadError(f"less than {patience.least_rate:.0f} bytes a second come", again=True)
            since, mark = now, part.size
        if part.size - checked >= 64 * 2**20:
            checked = part.size
            check_space(part.path.parent, (total or part.size) - part.size)
    watch.check()


def wrong_content(start: bytes, file: RemoteFile) -> str | None:
    """Why these first bytes cannot be the file's."""
    if not is_model(file.name) and not start.startswith(b"version https://git-lfs"):
        return None
    if start.startswith(b"GGUF") and file.name.lower().endswith(".gguf"):
        return None
    problem = sniff(start)
    pickled = problem and ("zip archive" in problem or "pickle" in problem)
    if problem is None or (pickled and not file.name.lower().endswith((".safetensors", ".gguf"))):
        return None
    return f"{file.name}: {problem}"


def status_error(status: int, headers: Mapping[str, str], address: str) -> DownloadError:
    """What an answer without a file means."""
    host = host_in(address)
    if status == 401:
        sentence = f"{host} wants a login for this file: put your key for it into the settings, or check the one there"
        return DownloadError(sentence, asks_for=host, status=status)
    if status == 403:
        sentence = f"{host} refuses this file: accept its terms on its page, or put a key that may into the settings"
        return DownloadError(sentence, asks_for=host, status=status)
    if status in (404, 410):
        return DownloadError(f"{host} has no such file (any more), or shows it only with a key", status=status)
    if status == 416:
        return DownloadError(f"{host} cannot send this file from its beginning (416)", status=status)
    if status == 429 or (status == 503 and "retry-after" in headers):
        wait = retry_after(headers.get("retry-after", ""))
        return DownloadError(f"{host} asks to wait ({status})", again=True, wait_s=wait, status=status)
    if status == 408 or status >= 500:
        return DownloadError(f"{host} has trouble of its own ({status})", again=True, status=status)
    return DownloadError(f"{host} answers {status}, and no file", status=status)


def retry_after(text: str) -> float:
    """Seconds; the header has them, or a date."""
    text = text.strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _wait(error: DownloadError, failures: int, patience: Patience, watch: Watch) -> None:
    if error.wait_s > patience.longest_wait_s:
        raise DownloadError(f"{error.sentence}, for {error.wait_s:.0f} s; go on with it later", status=error.status)
    if failures >= patience.tries:
        sentence = f"{error.sentence}; tried {failures} times, what came is kept: go on with it later"
        raise DownloadError(sentence, status=error.status)
    wait = max(error.wait_s, min(patience.first_wait_s * 2 ** (failures - 1), patience.longest_wait_s))
    watch.note(f"{error.sentence}; next try in {wait:.0f} s" if wait >= 1 else error.sentence)
    watch.stopped.wait(wait)


def check_space(folder: Path, needed: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + LEFT_FREE > free:
        raise DownloadError(
            f"the disk is too full: {needed / 2**30:.2f} GiB are needed (and {LEFT_FREE >> 20} MiB left over), "
            f"{free / 2**30:.2f} GiB are free; make room and go on with it"
        )


def disk_error(error: OSError) -> DownloadError:
    reason = error.strerror or "the disk refuses"
    return DownloadError(f"the file cannot be written: {reason}; check the disk and its permissions")


def host_in(address: str) -> str:
    return re.sub(r"^\w+://([^/?#]*).*", r"\1", address)[:80]


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text) else None
