"""All model files as one list, whatever their kind: what pages show, and what ids mean. It is made of what the
libraries of checkpoints, VAEs, networks, upscalers and components found; it walks through no folder of its own."""

import hashlib
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from modules.library import components, gguf
from modules.library.cache import FileCache
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.components import Component, ComponentLibrary, Looker
from modules.library.facts import KINDS, Facts, Kind
from modules.library.header import ModelFileError, printable, read_header
from modules.library.networks import NetworkFile, NetworkLibrary
from modules.library.roots import Root, Roots
from modules.library.sidecars import MOST_TEXT, preview_of
from modules.library.upscalers import Upscaler, UpscalerLibrary
from modules.library.vaes import VaeFile, VaeLibrary
from modules.library.walking import natural

NETWORKS: Mapping[Kind, Literal["lora", "embedding", "hypernetwork"]] = {
    "lora": "lora",
    "embedding": "embedding",
    "hypernetwork": "hypernetwork",
}
Sort = Literal["name", "folder", "date", "size"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MOST_TAGS = 200
MOST_METADATA = 400  # entries
LEFT_OUT = ("ssmd_cover_images", "modelspec.thumbnail", "ss_tag_frequency")  # pictures, and what is shown as tags


class UnknownModel(LookupError):
    """No model has this id (any more)."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model file, or one folder of diffusers."""

    id: str  # of its content; a further copy has its place appended
    kind: Kind
    name: str  # the file's, without ending
    value: str  # what requests, prompts and settings call it
    alias: str  # as its training called it, else ""
    folder: str  # where it lies, as shown
    path: str  # absolute; never shown
    size: int  # bytes
    mtime_ns: int
    facts: Facts
    sha256: str | None = None  # where it is known
    problem: str | None = None  # why it cannot be used

    @property
    def file(self) -> Path:
        return Path(self.path)


@dataclass(frozen=True)
class Wanted:
    """What of the list is asked for."""

    kinds: tuple[Kind, ...] = ()  # all
    family: str = ""  # "unknown": of those whose header does not tell
    search: str = ""  # words that must all be in name, alias, folder, family, base model or hash
    folder: str = ""  # and those below it
    sort: Sort = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 100


@dataclass(frozen=True)
class Page:
    models: tuple[ModelRecord, ...]
    total: int
    families: Mapping[str, int]  # of all that fit but for the family
    kinds: Mapping[str, int]


class Catalogue:
    """Thread-safe."""

    def __init__(
        self,
        checkpoints: CheckpointLibrary,
        vaes: VaeLibrary,
        networks: NetworkLibrary,
        upscalers: UpscalerLibrary,
        roots: Roots,
        cache: FileCache,
    ):
        self.checkpoints, self.vaes, self.networks, self.upscalers = checkpoints, vaes, networks, upscalers
        self.components = ComponentLibrary(roots, cache)
        self.roots = roots
        self._cache = cache
        self._looker = Looker(cache)
        self._lock = threading.RLock()
        self._shelves: dict[Kind, _Shelf] = {}

    def records(self, *kinds: Kind) -> tuple[ModelRecord, ...]:
        """Of these kinds, of all without; looks at the folders at the first call only."""
        return tuple(record for kind in kinds or KINDS for record in self._shelf(kind).records)

    def refresh(self, *kinds: Kind) -> None:
        """Look at the folders again. Lists can be asked for meanwhile: they are those of before."""
        for kind in kinds or KINDS:
            if kind == "checkpoint":
                self.checkpoints.refresh()
            elif kind == "vae":
                self.vaes.refresh()
            elif kind in components.KINDS:
                self.components.refresh(kind)
            elif network := NETWORKS.get(kind):
                self.networks.refresh(network)
            else:
                with self._lock:
                    self._shelves.pop(kind, None)

    def page(self, wanted: Wanted) -> Page:
        words = wanted.search.casefold().split()
        found: list[ModelRecord] = []
        for kind in wanted.kinds or KINDS:
            shelf = self._shelf(kind)
            texts = shelf.texts if words else ()
            for number, record in enumerate(shelf.records):
                if words and not all(word in texts[number] for word in words):
                    continue
                if not wanted.folder or within(record.folder, wanted.folder):
                    found.append(record)
        families = Counter(record.facts.family or UNKNOWN for record in found)
        kinds = Counter(str(record.kind) for record in found)
        if wanted.family:
            found = [record for record in found if (record.facts.family or UNKNOWN) == wanted.family]
        _sort(found, wanted)
        shown = found[wanted.offset : wanted.offset + wanted.limit]
        return Page(tuple(shown), len(found), dict(families.most_common()), dict(kinds))

    def find(self, id: str) -> ModelRecord:
        """By id; of several copies the first. Raises UnknownModel."""
        for wanted in (id, id.partition("-")[0]):
            for kind in KINDS:
                if (record := self._shelf(kind).by_id.get(wanted)) is not None:
                    return record
        raise UnknownModel(f"there is no model of the id {printable(id[:60])!r}; it may have been changed or removed")

    def folders(self, *kinds: Kind) -> dict[str, int]:
        """Every folder with models, and how many lie in it itself."""
        counted = Counter(record.folder for record in self.records(*kinds))
        return {folder: counted[folder] for folder in sorted(counted, key=natural)}

    def duplicates(self, *kinds: Kind) -> list[tuple[ModelRecord, ...]]:
        """Groups of files of one content: of one size and id, and of no two different sha256s. The largest first."""
        groups: dict[tuple[int, str], list[ModelRecord]] = defaultdict(list)
        for record in self.records(*kinds):
            if record.facts.content:
                groups[record.size, record.facts.content].append(record)
        several = [list(_files(found)) for found in groups.values() if len(found) > 1]
        same = [group for found in several if len(found) > 1 for group in _by_sha256(found)]
        return sorted(same, key=lambda group: -group[0].size * (len(group) - 1))

    def hashed(self, record: ModelRecord) -> ModelRecord:
        """With its sha256, read from the file if it is not known. Raises ModelFileError."""
        if record.kind == "checkpoint":
            checkpoint = next((one for one in self.checkpoints.list() if str(one.path) == record.path), None)
            if checkpoint is None:
                raise ModelFileError(record.file, "is not there any more")
            return replace(record, sha256=self.checkpoints.hashed(checkpoint).sha256)
        digests = self._cache.digests(record.file)
        with self._lock:
            self._shelves.pop(record.kind, None)
        return replace(record, sha256=digests.sha256)

    def _shelf(self, kind: Kind) -> "_Shelf":
        """Made anew when its library has found something else."""
        with self._lock:
            source = self._source(kind)
            shelf = self._shelves.get(kind)
            if shelf is None or (source is not None and shelf.source is not source):
                shelf = _Shelf(source, self._records(kind, source if source is not None else self.upscalers.list()))
                self._shelves[kind] = shelf
            return shelf

    def _source(self, kind: Kind) -> Sequence[Any] | None:
        if kind == "checkpoint":
            return self.checkpoints.list()
        if kind == "vae":
            return self.vaes.list()
        if kind in components.KINDS:
            return self.components.list(kind)
        network = NETWORKS.get(kind)
        return self.networks.everything(network) if network else None

    def _records(self, kind: Kind, found: Sequence[Any]) -> list[ModelRecord]:
        folder_of = _Folders(self.roots.get(kind, ()) + (self.roots.get("checkpoint", ()) if kind == "vae" else ()))
        if kind == "checkpoint":
            whole = {root.path for root in self.roots.get(kind, ())}
            lone = [root.path for root in self.roots.get("unet", ()) if root.path not in whole]
            # UNets can be chosen as checkpoints are, but they are a kind of their own here.
            found = [one for one in found if not any(one.path.is_relative_to(path) for path in lone)]
            return [_of_checkpoint(one, folder_of) for one in found]
        if network := NETWORKS.get(kind):
            return [self._of_network(one, kind, folder_of) for one in found if one.kind == network]
        if kind in components.KINDS:
            return [self._of_component(one) for one in found]
        looked = self._looker.look(one.path for one in found if one.path is not None)
        records = []
        for one in found:
            if one.path in looked:
                fingerprint, facts, problem = looked[one.path]
                sha256 = self._sha256(one.path, fingerprint.size, fingerprint.mtime_ns)
                made = _of_vae(one) if isinstance(one, VaeFile) else _of_upscaler(one, problem)
                records.append(
                    replace(
                        made,
                        folder=folder_of(str(one.path)),
                        size=fingerprint.size,
                        mtime_ns=fingerprint.mtime_ns,
                        facts=facts,
                        sha256=sha256,
                        problem=made.problem or problem,
                    )
                )
        return records

    def _of_network(self, one: NetworkFile, kind: Kind, folder_of: "_Folders") -> ModelRecord:
        return ModelRecord(
            id=one.facts.content,
            kind=kind,
            name=one.name,
            value=self.networks.precise_name(one),
            alias=one.alias if one.alias != one.name else "",
            folder=folder_of(one.file),
            path=one.file,
            size=one.size,
            mtime_ns=one.mtime_ns,
            facts=one.facts,
            sha256=self._sha256(one.path, one.size, one.mtime_ns),
            problem=one.problem,
        )

    def _of_component(self, one: Component) -> ModelRecord:
        size, mtime_ns = one.fingerprint.size, one.fingerprint.mtime_ns
        return ModelRecord(
            id=one.facts.content,
            kind=one.kind,
            name=one.name,
            value=printable(one.path.name),
            alias="",
            folder=printable(one.root.folder_of(one.path)),
            path=str(one.path),
            size=size,
            mtime_ns=mtime_ns,
            facts=one.facts,
            sha256=self._sha256(one.path, size, mtime_ns),
            problem=one.problem,
        )

    def _sha256(self, path: Path, size: int, mtime_ns: int) -> str | None:
        known = self._cache.known(path, size, mtime_ns)
        return known.sha256 if known else None


UNKNOWN = "unknown"


class _Shelf:
    """The records of one kind, with ids that no two of them share: of copies the oldest keeps that of the content."""

    def __init__(self, source: object, records: Sequence[ModelRecord]):
        self.source = source
        self.by_id: dict[str, ModelRecord] = {}
        ids: dict[int, str] = {}  # by place in `records`
        for number, record in sorted(enumerate(records), key=lambda pair: pair[1].mtime_ns):
            id = record.id or _place(record)  # nothing is known of what is inside
            if id in self.by_id:
                place = _place(record)
                id = next(new for digits in (6, 20) if (new := f"{id}-{place[:digits]}") not in self.by_id)
            self.by_id[id] = record if record.id == id else replace(record, id=id)
            ids[number] = id
        self.records = tuple(self.by_id[ids[number]] for number in range(len(records)))
        self._texts: tuple[str, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """What is searched, in the order of the records; made when first needed."""
        if self._texts is None:
            self._texts = tuple(_searched(record) for record in self.records)
        return self._texts


def _searched(record: ModelRecord) -> str:
    facts = record.facts
    parts = (record.name, record.alias, record.folder, facts.family, facts.base_model, record.sha256 or "", record.id)
    return "\n".join(parts).casefold()


def _place(record: ModelRecord) -> str:
    return hashlib.sha256(f"{record.kind}\n{record.folder}\n{record.value}\n{record.name}".encode()).hexdigest()[:20]


class _Folders:
    """Of many files: each folder is worked out once."""

    def __init__(self, roots: Sequence[Root]):
        self._roots = sorted(roots, key=lambda root: -len(str(root.path)))  # the innermost counts
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        parent = os.path.dirname(path)
        found = self._known.get(parent)
        if found is None:
            root = next((one for one in self._roots if Path(path).is_relative_to(one.path)), None)
            found = self._known[parent] = printable(root.folder_of(Path(path))) if root else ""
        return found


def _of_checkpoint(one: Checkpoint, folder_of: _Folders) -> ModelRecord:
    return ModelRecord(
        id=one.facts.content,
        kind="checkpoint",
        name=one.model_name,
        value=one.title,
        alias="",
        folder=folder_of(str(one.path)),
        path=str(one.path),
        size=one.size,
        mtime_ns=one.mtime_ns,
        facts=one.facts,
        sha256=one.sha256,
        problem=one.problem,
    )


def _of_vae(one: VaeFile) -> ModelRecord:
    return ModelRecord("", "vae", printable(one.path.stem), one.name, "", "", str(one.path), 0, 0, Facts())


def _of_upscaler(one: Upscaler, problem: str | None) -> ModelRecord:
    name = printable(one.path.stem) if one.path else one.name
    problem = one.problem or problem
    return ModelRecord("", "upscaler", name, one.name, "", "", str(one.path), 0, 0, Facts(), None, problem)


def within(folder: str, outer: str) -> bool:
    return folder == outer or folder.startswith(outer + "/")


def _sort(records: list[ModelRecord], wanted: Wanted) -> None:
    keys: Mapping[Sort, Callable[[ModelRecord], Any]] = {
        "name": lambda record: natural(record.name),
        "folder": lambda record: (natural(record.folder), natural(record.name)),
        "date": lambda record: record.mtime_ns,
        "size": lambda record: record.size,
    }
    records.sort(key=keys[wanted.sort], reverse=wanted.descending)


def _files(records: Iterable[ModelRecord]) -> Iterable[ModelRecord]:
    """Without links to others of them: those are no second copies."""
    return {os.path.realpath(record.path): record for record in records}.values()


def _by_sha256(records: list[ModelRecord]) -> list[tuple[ModelRecord, ...]]:
    """Split where hashes that are known tell otherwise than the id."""
    known = {record.sha256 for record in records if record.sha256}
    if len(known) < 2:
        return [tuple(records)]
    groups = [tuple(record for record in records if record.sha256 == sha256) for sha256 in known]
    return [group for group in groups if len(group) > 1]


# --- what is read only when one model is looked at -------------------------------------------------------------------


def metadata_of(record: ModelRecord) -> dict[str, str]:
    """Of its header, as texts; empty where a format has none. Raises ModelFileError."""
    suffix = record.file.suffix.lower()
    if suffix == ".safetensors":
        return dict(read_header(record.file).metadata)
    return dict(gguf.read_gguf_header(record.file).metadata) if suffix == gguf.SUFFIX else {}


def shown_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    kept = [(name, text) for name, text in metadata.items() if name not in LEFT_OUT][:MOST_METADATA]
    return {printable(name[:200]): plain(text[:MOST_TEXT]) for name, text in kept}


def tags_of(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """The words of its training pictures and how often each came, the most frequent first."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counted: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and 0 < count < 10**9:
                counted[plain(tag.strip()[:200])] += count
    return [(tag, count) for tag, count in counted.most_common(MOST_TAGS) if tag]


def plain(text: str) -> str:
    """Valid Unicode, without control characters but line ends."""
    if text.isprintable():
        return text
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in valid if c in "\n\t" or c.isprintable())


def picture_of(record: ModelRecord, names: frozenset[str] | None = None) -> Path | None:
    """The file that shows it: a preview beside it, or itself with a picture inside. `names`: all in its folder."""
    return preview_of(record.file, names) or (record.file if record.facts.pictured else None)
