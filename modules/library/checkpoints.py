"""Which checkpoints exist, and which one a text means. Knows files, headers and hashes; nothing of what is inside."""

import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from modules.library import folders, gguf
from modules.library.cache import FileCache, FileFacts
from modules.library.facts import Facts, look
from modules.library.hashes import Fingerprint, legacy_hash
from modules.library.header import MAX_HEADER_BYTES, ModelFileError, open_regular, printable, sniff
from modules.library.roots import Root, as_roots, places_in
from modules.library.walking import OUTSIDE, Budget, Entries, natural
from modules.runtime.archive import PickleError, check_archive

log = logging.getLogger(__name__)

PICKLED = (".ckpt", ".pt")
SUFFIXES = (".safetensors", gguf.SUFFIX, *PICKLED)
UNSUPPORTED = (".pth", ".bin", ".onnx", ".pkl", ".npz")
VAES = tuple(f".vae{suffix}" for suffix in SUFFIXES)  # they may lie among the checkpoints
_News = list[tuple[Path, FileFacts]]
CHECK_BUDGET_S = 1.5  # for reading headers of new files in one refresh; the rest is looked at briefly


class UnknownCheckpoint(LookupError):
    """No checkpoint, or several, go by this text. `nearest`: titles that may be meant; `why` leaves them out."""

    def __init__(self, text: str, nearest: Sequence[str], why: str = ""):
        self.text, self.nearest = text, tuple(nearest)
        hint = f"; nearest: {', '.join(self.nearest)}" if self.nearest else "; there is none at all"
        self.why = why or f"there is no checkpoint {printable(text[:200])!r}"
        super().__init__(self.why + hint)


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    name: str  # "folder/x.safetensors", always printable
    fingerprint: Fingerprint
    sha256: str | None = None  # where it is known
    config: Path | None = None  # the .yaml beside it
    problem: str | None = None  # why it cannot be used
    body_sha256: str | None = None  # of the weights without header, where it is known
    facts: Facts = Facts()  # empty until the whole header was read

    @property
    def model_name(self) -> str:
        """ "x": what the infotext says."""
        return _without_suffix(self.name.rsplit("/", 1)[-1])

    @property
    def flat_name(self) -> str:
        """ "folder_x": what A1111's API calls model_name."""
        return _without_suffix(self.name.replace("/", "_"))

    @property
    def shorthash(self) -> str | None:
        return self.sha256[:10] if self.sha256 else None

    @property
    def title(self) -> str:
        return f"{self.name} [{self.shorthash}]" if self.sha256 else self.name

    @property
    def short_title(self) -> str:
        return f"{self.model_name} [{self.shorthash}]" if self.sha256 else self.model_name

    @property
    def size(self) -> int:
        return self.fingerprint.size

    @property
    def mtime_ns(self) -> int:
        return self.fingerprint.mtime_ns


class CheckpointLibrary:
    """The checkpoints of some folders, the first folder first. Thread-safe."""

    def __init__(self, folders: Sequence[Path | Root], cache: Path | FileCache):
        self.roots = as_roots(folders)
        self._cache = cache if isinstance(cache, FileCache) else FileCache(cache)
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._found: tuple[Checkpoint, ...] | None = None
        self._usual: Path | None = None  # what `usual` gave
        self._brief: dict[Path, FileFacts] = {}  # of files that were only looked at briefly

    def list(self) -> tuple[Checkpoint, ...]:
        """All of them, broken ones with their problem; scans at the first call only."""
        return self._found if self._found is not None else self.refresh()

    def refresh(self) -> tuple[Checkpoint, ...]:
        with self._lock:
            self._found = self._scan()
            return self._found

    def usable(self) -> tuple[Checkpoint, ...]:
        return tuple(checkpoint for checkpoint in self.list() if checkpoint.problem is None)

    def usual(self) -> Checkpoint | None:
        """For who names none: the first that is in order, a whole one if there is any. A whole one stays it while it is
        there: a file that comes later, from a merge or a download, does not take its place unasked."""
        usable = self.usable()
        kept = (one for one in usable if one.path == self._usual)
        whole = (one for one in usable if one.facts.kind != "unet")
        found = next(chain(kept, whole, usable), None)
        self._usual = found.path if found and found.facts.kind != "unet" else None
        return found

    def find(self, text: str) -> Checkpoint:
        """By title, name or hash in any case (sha256, its first 10 characters, the 8 from 2022, and AutoV3 of what was
        hashed before), else by a part of one title only. Of a title whose hash and name disagree, the hash counts, else
        the name. Raises UnknownCheckpoint, or ModelFileError for a broken one."""
        wanted = text.strip().casefold()
        found = _exact(self.list(), wanted) if wanted else ()
        found = found or self._by_legacy_hash(wanted) or _partial(self.usable(), wanted)
        if len(found) == 1:
            if found[0].problem:
                raise ModelFileError(found[0].path, found[0].problem)
            return found[0]
        if found:
            titles = [checkpoint.title for checkpoint in found[:5]]
            raise UnknownCheckpoint(text, titles, f"{len(found)} checkpoints go by {printable(text[:200])!r}")
        raise UnknownCheckpoint(text, self._nearest(wanted))

    def hashed(self, checkpoint: Checkpoint, watch: Callable[[int, int], None] | None = None) -> Checkpoint:
        """With its sha256, read from the file if it is not known (a second or two per GB) or the file has changed."""
        with self._hashing:
            try:
                now = fingerprint_of(checkpoint.path)
            except OSError as error:
                raise ModelFileError(checkpoint.path, f"is not there any more ({error.strerror or error})") from None
            known = self._cache.get(checkpoint.path, now)
            sha256, body_sha256 = (known.sha256, known.body_sha256) if known else (None, None)
            if sha256 is None and checkpoint.path.is_dir():
                sha256 = body_sha256 = self._digest_of_folder(checkpoint.path, now, watch)
            elif sha256 is None:
                digests = self._cache.digests(checkpoint.path, watch)
                sha256, body_sha256 = digests.sha256, digests.body_sha256
        with self._lock:
            result = replace(checkpoint, fingerprint=now, sha256=sha256, body_sha256=body_sha256)
            if self._found is not None:
                self._found = tuple(result if c.path == result.path else c for c in self._found)
            return result

    def _digest_of_folder(self, folder: Path, now: Fingerprint, watch: Callable[[int, int], None] | None) -> str:
        """sha256 of the names and sha256s of its files with weights."""
        files = sorted(path for paths in folders.files_of(folder).values() for path in paths)
        lines = [f"{path.relative_to(folder).as_posix()} {self._cache.digests(path, watch).sha256}" for path in files]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        self._cache.put([(folder, FileFacts(now, digest, True, None, digest))])
        return digest

    def _scan(self) -> tuple[Checkpoint, ...]:
        found: dict[str, Checkpoint] = {}
        news: _News = []
        budget = Budget(CHECK_BUDGET_S)
        for root, path, config, is_outside in _model_files(self.roots):
            name = printable(root.inside(path))
            if name in found:  # an earlier folder has one of this name
                if not root.label:
                    continue
                name = f"{root.label}/{name}"
            if is_outside:
                found[name] = Checkpoint(path, name, Fingerprint(0, 0, 0), problem=OUTSIDE)
            else:
                found[name] = self._look_at(path, name, config, budget, news)
        self._cache.put(news)
        return tuple(sorted(found.values(), key=lambda checkpoint: natural(checkpoint.name)))

    def _look_at(self, path: Path, name: str, config: Path | None, budget: Budget, news: _News) -> Checkpoint:
        try:
            status = path.stat()
            fingerprint = _fingerprint(path, status)
        except ModelFileError as error:
            return Checkpoint(path, name, Fingerprint(0, 0, 0), problem=error.reason)
        except OSError as error:
            reason = "a link that leads nowhere" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
            return Checkpoint(path, name, Fingerprint(0, 0, 0), problem=reason)
        facts = self._cache.get(path, fingerprint)
        if facts is None or not facts.checked:
            is_folder = stat.S_ISDIR(status.st_mode)
            facts = self._look_into(path, is_folder, facts or FileFacts(fingerprint), budget, news)
        return Checkpoint(path, name, fingerprint, facts.sha256, config, facts.problem, facts.body_sha256, facts.facts)

    def _look_into(self, path: Path, is_folder: bool, known: FileFacts, budget: Budget, news: _News) -> FileFacts:
        """Wholly while there is time for it, else briefly, and briefly only once."""
        whole = not budget.is_spent
        brief = None if whole else self._brief.get(path)
        if brief and brief.fingerprint == known.fingerprint:
            return replace(known, problem=brief.problem)
        with budget.spending():
            problem, told = _looked(path, is_folder, whole)
        facts = FileFacts(known.fingerprint, known.sha256, whole, problem, known.body_sha256, told)
        if problem == _UNREADABLE:
            self._brief.pop(path, None)
        elif whole:
            news.append((path, facts))
            self._brief.pop(path, None)
        else:
            self._brief[path] = facts
        return facts

    def _by_legacy_hash(self, wanted: str) -> tuple[Checkpoint, ...]:
        if not re.fullmatch(r"[0-9a-f]{8}", wanted):
            return ()
        found = []
        for checkpoint in self.usable():
            if checkpoint.path.is_dir():
                continue
            try:
                if legacy_hash(checkpoint.path) == wanted:
                    found.append(checkpoint)
            except (ModelFileError, OSError) as error:
                log.warning("no hash of %s: %s", checkpoint.name, error)
        return tuple(found)

    def _nearest(self, wanted: str) -> Sequence[str]:
        titles = {checkpoint.title.casefold(): checkpoint.title for checkpoint in self.usable()}
        near = get_close_matches(wanted[:200], list(titles)[:2000], n=3, cutoff=0.3)
        return [titles[title] for title in near] or list(titles.values())[:3]


_UNREADABLE = "cannot be read: Permission denied"


def _model_files(roots: Sequence[Root]) -> Iterator[tuple[Root, Path, Path | None, bool]]:
    """Every file that looks like a model, with the .yaml beside it, and whether it is a link to elsewhere."""

    def is_whole(entries: Entries) -> bool:
        return any(entry.name == folders.INDEX for entry in entries)

    for root, place in places_in(roots, "checkpoint", SUFFIXES + UNSUPPORTED, is_whole):
        here = Path(place.path)
        if place.is_whole:
            yield root, here, None, False
            continue
        configs = {entry.name for entry in place.entries if entry.name.endswith(".yaml")}
        for entry in place.files:
            if not entry.name.lower().endswith(VAES):
                config = f"{os.path.splitext(entry.name)[0]}.yaml"
                is_outside = entry.name in place.outside
                yield root, here / entry.name, here / config if config in configs else None, is_outside


def _looked(path: Path, is_folder: bool, whole: bool) -> tuple[str | None, Facts]:
    """Why it cannot be used, and what its header tells. Not `whole`: only its first bytes are looked at."""
    suffix = path.suffix.rstrip().lower()
    try:
        if is_folder:
            folders.files_of(path)
            return None, look(path) if whole else Facts()
        if suffix in (".safetensors", gguf.SUFFIX) and whole:
            return None, look(path)
        with os.fdopen(open_regular(path), "rb", buffering=512) as file:
            start = file.read(256)
            size = os.fstat(file.fileno()).st_size
            if suffix in PICKLED and start.startswith(b"PK\x03\x04"):
                check_archive(file, size)
                return None, look(path) if whole else Facts()
    except ModelFileError as error:
        return error.reason, Facts()
    except PickleError as error:
        return str(error), Facts()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}", Facts()
    if suffix in UNSUPPORTED:
        return f"not supported: {suffix} files; get the safetensors version", Facts()
    if suffix == gguf.SUFFIX:
        return (None if start.startswith(gguf.MAGIC) else sniff(start) or "no GGUF file"), Facts()
    if not start:
        return "this file is empty: the download failed; download it again", Facts()
    length = int.from_bytes(start[:8], "little")
    sound = 8 + length <= size and length <= MAX_HEADER_BYTES and start[8:9] == b"{"
    return (None if sound else sniff(start) or "corrupt header"), Facts()


def fingerprint_of(path: Path) -> Fingerprint:
    """Of a file; of a model that is a folder, from all of its files with weights. Raises OSError, ModelFileError."""
    return _fingerprint(path, path.stat())


def _fingerprint(path: Path, status: os.stat_result) -> Fingerprint:
    if not stat.S_ISDIR(status.st_mode):
        return Fingerprint.of(status)
    if not folders.is_checkpoint(path):  # a folder that is called x.safetensors
        raise ModelFileError(path, "is a folder, not a file")
    found = [file.stat() for files in folders.files_of(path).values() for file in files]
    return Fingerprint(sum(one.st_size for one in found), max(one.st_mtime_ns for one in found), status.st_ino)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.rstrip().lower() in SUFFIXES + UNSUPPORTED else name


def _exact(checkpoints: Sequence[Checkpoint], wanted: str) -> tuple[Checkpoint, ...]:
    """The first kind of name that any checkpoint has exactly; usable ones before broken ones."""
    kinds: tuple[Callable[[Checkpoint], str | None], ...] = (
        lambda c: c.title,
        lambda c: c.name,
        lambda c: c.short_title,
        lambda c: c.sha256,
        lambda c: c.shorthash,
        lambda c: c.body_sha256,
        lambda c: c.body_sha256 and c.body_sha256[:12],
        lambda c: c.model_name,
        lambda c: c.flat_name,
        lambda c: c.name.rsplit("/", 1)[-1],
    )
    for kind in kinds:
        found = [c for c in checkpoints if (kind(c) or "").casefold() == wanted]
        usable = tuple(c for c in found if c.problem is None)
        if found:
            return usable or tuple(found[:1])
    return ()


def _partial(checkpoints: Sequence[Checkpoint], wanted: str) -> tuple[Checkpoint, ...]:
    titled = re.fullmatch(r"(.*?)\s*\[([0-9a-f]{1,64})\]", wanted, re.DOTALL)
    name = titled[1] if titled else wanted
    if titled and (found := _exact(checkpoints, titled[2]) or _exact(checkpoints, name)):
        return found
    return tuple(c for c in checkpoints if name in c.title.casefold()) if name else ()
