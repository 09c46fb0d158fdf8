"""Which LoRAs, embeddings and hypernetworks exist, and which one a name means. Built for ten thousand files: a listing
reads the first bytes of new files only. Knows file names, headers' metadata and hashes; nothing of what is inside."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from modules.library.cache import FileCache
from modules.library.facts import Facts
from modules.library.header import printable, read_header
from modules.library.network_cache import Looked, NetworkCache
from modules.library.network_heads import look_at
from modules.library.roots import Root, as_roots, places_in
from modules.library.walking import OUTSIDE, Budget

log = logging.getLogger(__name__)

Kind = Literal["lora", "embedding", "hypernetwork"]
SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "lora": (".safetensors", ".pt", ".ckpt"),
    "embedding": (".safetensors", ".pt", ".bin", ".png", ".webp", ".jxl", ".avif"),
    "hypernetwork": (".pt",),
}
IMAGES = (".png", ".webp", ".jxl", ".avif")  # an embedding may hide in a picture; most are previews
LOOK_BUDGET_S = 3.0  # for the first look at new files in one scan: some twenty thousand; the rest waits for the next
NEVER_ALIASES = frozenset({"none", "addams"})  # A1111 knows networks of these names by their file name only


@dataclass(frozen=True, slots=True)
class NetworkFile:
    kind: Kind
    file: str  # absolute
    name: str  # the file's name without its suffix: what a tag in a prompt says; a picture's is inside
    alias: str  # what its training called it, else the name
    trained_for: str  # SD1, SD2, SDXL or Unknown: from the metadata, as A1111 guesses it
    size: int
    mtime_ns: int
    stated_hash: str | None = None  # of the weights, as its metadata say
    problem: str | None = None  # why it cannot be used
    facts: Facts = Facts()

    @property
    def path(self) -> Path:
        return Path(self.file)


class NetworkLibrary:
    """The networks of some folders. Thread-safe. `cache` is an SQLite file that outlasts the process."""

    def __init__(self, folders: Mapping[Kind, Sequence[Path | Root]], cache: Path, hashes: FileCache | None = None):
        self.roots: Mapping[Kind, tuple[Root, ...]] = {kind: as_roots(found) for kind, found in folders.items()}
        self._cache = NetworkCache(cache)
        self._hashes = hashes or FileCache(cache)
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._shelves: dict[Kind, _Shelf] = {}

    def list(self, kind: Kind) -> tuple[NetworkFile, ...]:
        """In natural order, one for each name; scans at the first call only."""
        return self._shelf(kind).files

    def everything(self, kind: Kind) -> tuple[NetworkFile, ...]:
        """Those too whose name another one has."""
        return self._shelf(kind).everything

    def precise_name(self, file: NetworkFile) -> str:
        """What `find` takes for this file and no other: its name, with its folder where another one has the name."""
        shelf = self._shelf(file.kind)
        if shelf.by_name.get(file.name) is file:
            return file.name
        return next((name for name in shelf.inside(file) if shelf.find(name) is file), file.name)

    def refresh(self, *kinds: Kind) -> None:
        """Look at the folders again; without `kinds`, at all."""
        with self._lock:
            for kind in kinds or self.roots:
                self._scan(kind)

    def find(self, kind: Kind, name: str) -> NetworkFile | None:
        """By name or alias as in A1111; else in any case, or with its folder. What is missing is looked for anew."""
        found = self._shelf(kind).find(name)
        if found is None:
            self.refresh(kind)
            found = self._shelf(kind).find(name)
        return found

    def nearest(self, kind: Kind, name: str) -> Sequence[str]:
        """Names that may be meant."""
        names = {file.name.casefold(): file.name for file in self.list(kind)}
        return [names[near] for near in get_close_matches(name[:200].casefold(), list(names)[:2000], n=3, cutoff=0.5)]

    def shown_name(self, file: NetworkFile, preferred: str = "Alias from file") -> str:
        """What a card puts into the prompt; `preferred` is the setting lora_preferred_name."""
        ambiguous = file.alias.lower() in self._shelf(file.kind).ambiguous
        return file.name if preferred == "Filename" or ambiguous else file.alias

    def hash(self, file: NetworkFile) -> str:
        """The sha256 that names it: of a LoRA's weights, of any other file as a whole. Read from the file unless known.
        Raises ModelFileError."""
        if file.kind == "lora" and file.stated_hash:
            return file.stated_hash
        with self._hashing:
            digests = self._hashes.digests(file.path)
        return digests.body_sha256 if file.kind == "lora" else digests.sha256

    def shorthash(self, file: NetworkFile) -> str:
        """The 12 characters that stand in infotexts."""
        return self.hash(file)[:12]

    def by_hash(self, kind: Kind, shorthash: str) -> NetworkFile | None:
        """The network with this hash, among those whose hash is known without reading them."""
        wanted = shorthash.strip().lower()
        for file in self.list(kind) if len(wanted) >= 10 else ():
            known = file.stated_hash if file.kind == "lora" else None
            facts = None if known else self._hashes.known(file.path, file.size, file.mtime_ns)
            if facts is not None:
                known = facts.body_sha256 if file.kind == "lora" else facts.sha256
            if known and known.startswith(wanted):
                return file
        return None

    def metadata(self, file: NetworkFile) -> dict[str, str]:
        """All of it, read from the file; empty where a format has none. Raises ModelFileError."""
        return dict(read_header(file.path).metadata) if file.file.lower().endswith(".safetensors") else {}

    def _shelf(self, kind: Kind) -> "_Shelf":
        if kind not in self._shelves:
            with self._lock:
                if kind not in self._shelves:
                    self._scan(kind)
        return self._shelves[kind]

    def _scan(self, kind: Kind) -> None:
        before = self._shelves[kind].by_path if kind in self._shelves else {}
        by_path: dict[str, NetworkFile] = {}
        news: dict[str, Looked] = {}
        budget = Budget(LOOK_BUDGET_S)
        for path, size, mtime_ns, is_outside in _files(self.roots.get(kind, ()), kind):
            old = before.get(path)
            is_known = old is not None and (old.size, old.mtime_ns) == (size, mtime_ns) and not old.problem
            if old is not None and is_known and old.facts.content:
                by_path[path] = old
                continue
            looked = self._cache.get(path, size, mtime_ns)
            if is_outside:
                looked = Looked(size, mtime_ns, problem=OUTSIDE)
            elif looked is None and budget.is_spent:
                looked = Looked(size, mtime_ns)  # the next scan looks at it
            elif looked is None:
                with budget.spending():
                    looked = look_at(path, kind, size, mtime_ns)
                if looked.problem is None:
                    news[path] = looked
            if looked.is_network:
                by_path[path] = _network(kind, path, looked)
        self._cache.put(news)
        self._shelves[kind] = _Shelf(self.roots.get(kind, ()), by_path)


class _Shelf:
    """The networks of one kind, as one scan found them."""

    def __init__(self, roots: Sequence[Root], by_path: dict[str, NetworkFile]):
        self.by_path = by_path
        self._roots = sorted(roots, key=lambda root: -len(str(root.path)))  # the innermost counts
        self.by_name: dict[str, NetworkFile] = {}
        self.ambiguous: set[str] = set(NEVER_ALIASES)
        self._aliases: dict[str, NetworkFile] = {}
        for file in by_path.values():  # of two of one name the last counts, as in A1111
            self.by_name[file.name] = file
            if file.alias in self._aliases:
                self.ambiguous.add(file.alias.lower())
            self._aliases[file.name] = self._aliases[file.alias] = file
        self.files = tuple(self.by_name.values())
        self.everything = tuple(by_path.values())
        self._folded: dict[str, NetworkFile] | None = None

    def find(self, name: str) -> NetworkFile | None:
        exact = self.by_name if name.lower() in self.ambiguous else self._aliases
        return exact.get(name) or self._any_case().get(name.strip().casefold())

    def _any_case(self) -> dict[str, NetworkFile]:
        """By name and by "folder/name", in lower case; made when first needed."""
        if self._folded is None:
            folded: dict[str, NetworkFile] = {}
            for file in self.by_path.values():
                folded[file.alias.casefold()] = file
            for file in self.by_path.values():
                folded[file.name.casefold()] = file
                for inside in self.inside(file):
                    folded.setdefault(inside.casefold(), file) if "/" in inside else folded.update(
                        {inside.casefold(): file}
                    )
            self._folded = folded
        return self._folded

    def inside(self, file: NetworkFile) -> tuple[str, ...]:
        """ "folder/name", and with the label of its tree; nothing for a file that lies in none of the folders."""
        for root in self._roots:
            if file.file.startswith(str(root.path) + os.sep):
                inside = printable(os.path.splitext(root.inside(file.file))[0])
                return (inside, f"{root.label}/{inside}") if root.label else (inside,)
        return ()


def _network(kind: Kind, path: str, looked: Looked) -> NetworkFile:
    name = looked.name or printable(os.path.splitext(os.path.basename(path))[0])
    alias = looked.alias or name
    return NetworkFile(
        kind,
        path,
        name,
        alias,
        looked.trained_for,
        looked.size,
        looked.mtime_ns,
        looked.stated_hash,
        looked.problem,
        looked.facts,
    )


def _files(roots: Sequence[Root], kind: Kind) -> Iterator[tuple[str, int, int, bool]]:
    """(path, size, mtime, whether it is a link to elsewhere) of every file of this kind, in natural order, files before
    the folders below them."""
    for _, place in places_in(roots, kind, SUFFIXES[kind]):
        files = _without_previews(place.files) if kind == "embedding" else place.files
        for path, size, mtime_ns in _with_status(files):
            yield path, size, mtime_ns, bool(place.outside) and os.path.basename(path) in place.outside


def _without_previews(files: Sequence[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Pictures beside a model of the same name, or called x.preview.png, show what it does; they are none."""
    models = {os.path.splitext(entry.name)[0] for entry in files if not entry.name.lower().endswith(IMAGES)}
    kept = []
    for entry in files:
        stem = os.path.splitext(entry.name)[0]
        is_preview = entry.name.lower().endswith(IMAGES) and (stem in models or stem.lower().endswith(".preview"))
        if not is_preview:
            kept.append(entry)
    return kept


def _with_status(files: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, int, int]]:
    for entry in files:
        try:
            status = entry.stat()
        except OSError as error:  # a link that leads nowhere
            log.warning("%s cannot be read: %s", printable(entry.path), error.strerror or error)
            continue
        yield entry.path, status.st_size, status.st_mtime_ns
