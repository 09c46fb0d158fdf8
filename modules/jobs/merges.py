"""Merges of checkpoints: what may be asked for, and making them on the worker's thread between two jobs, so that
nothing competes for memory and disk. They live in memory only: what a crash ends leaves no file. Imports torch when one
begins."""

import errno
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from modules.gallery.naming import safe_name
from modules.jobs.events import Event, EventBus
from modules.library.checkpoints import Checkpoint, CheckpointLibrary, UnknownCheckpoint, fingerprint_of
from modules.library.hashes import legacy_hash
from modules.library.header import Header, ModelFileError, read_header
from modules.library.recipes import (
    NEEDED,
    PARENTS,
    ConfigFrom,
    Method,
    Parent,
    Recipe,
    Special,
    automatic_name,
    config_of,
    recipe_metadata,
    special_of,
    together,
)
from modules.library.vaes import NONE, UnknownVae, VaeFile, VaeLibrary
from modules.runtime.files import growing, remove_left_behind, write_whole
from modules.runtime.matching import MOST_CHARACTERS, PatternError, matching

log = logging.getLogger(__name__)

MOST_WAITING = 16
MOST_KEPT = 50  # merges that have ended
MOST_NAME = 180  # bytes
SPARE = 16 * 2**20  # bytes of the disk that are left
MOST_CONFIG = 2**20  # bytes
TOLD_A_SECOND = 10

State = Literal["queued", "running", "done", "failed", "cancelled"]
Phase = Literal["waiting", "hashing", "merging", "saving"]
Ends = Callable[[], bool]  # whether the program ends


class MergeRequest(BaseModel):
    """What the tab Checkpoint Merger asks for; A1111's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    primary: str = Field(min_length=1, max_length=1000)  # A: title, name or hash of a checkpoint
    secondary: str = Field("", max_length=1000)
    tertiary: str = Field("", max_length=1000)
    method: Method = "Weighted sum"
    multiplier: float = Field(0.3, ge=0, le=1)
    half: bool = False
    name: str = Field("", max_length=200)  # empty: made of the parents' names
    format: Literal["safetensors", "ckpt"] = "safetensors"
    config_from: ConfigFrom = "A, B or C"
    vae: str = Field(NONE, max_length=1000)
    discard: str = Field("", max_length=MOST_CHARACTERS)  # regular expression
    save_metadata: bool = True
    add_recipe: bool = True
    copy_metadata: bool = True
    metadata: dict[str, Any] = Field(default_factory=dict)  # the user's own
    overwrite: bool = False

    @field_validator("format")
    @classmethod
    def _only_safetensors(cls, value: str) -> str:
        if value == "ckpt":
            raise ValueError("ckpt files are pickles, which are read here but not written; choose safetensors")
        return value


class MergeRefused(ValueError):
    """Nothing was begun. `field` of the request is to blame."""

    def __init__(self, field: str, sentence: str):
        super().__init__(sentence)
        self.field = field


class NotThere(MergeRefused):
    """A model that is named does not exist."""


class AlreadyThere(MergeRefused):
    """A file of the result's name does."""


class TooMany(MergeRefused):
    """There are too many merges waiting."""


@dataclass
class Merge:
    """One merge, from the moment it is accepted. Changed by the worker's thread, read by all."""

    id: str
    request: MergeRequest
    parents: tuple[Checkpoint, ...]
    vae: VaeFile | None
    target: Path
    special: Special
    state: State = "queued"
    phase: Phase = "waiting"
    done: int = 0  # bytes of the phase
    total: int = 0
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    checkpoint: str | None = None  # title of the result
    stop: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def described(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "file": self.target.name,
            "checkpoint": self.checkpoint,
            "error": self.error,
            "warnings": list(self.warnings),
        }


class Merges:
    """`between_jobs` runs what it is given on the worker's thread; `report` takes what the program does now and how
    far it is, `status` gives what it did before, `finished` is called when a new checkpoint is there."""

    def __init__(
        self,
        folder: Path,
        library: CheckpointLibrary,
        vaes: VaeLibrary,
        bus: EventBus,
        between_jobs: Callable[[Callable[[Ends], None]], None],
        report: Callable[..., None],
        status: Callable[[], tuple[str, str]],
        finished: Callable[[], None],
    ):
        self.folder = folder
        self._library, self._vaes, self._bus = library, vaes, bus
        self._between_jobs, self._report, self._status = between_jobs, report, status
        self._finished = finished
        self._lock = threading.Lock()
        self._merges: dict[str, Merge] = {}

    def clean(self) -> None:
        """At start: what was being written when the last process ended."""
        for path in remove_left_behind(self.folder):
            log.info("%s, the half-written result of a merge that a crash ended, was deleted", path.name)

    def submit(self, request: MergeRequest) -> Merge:
        """Accepted, and made when no job runs. Raises MergeRefused."""
        number = PARENTS[request.method]
        named = {"primary": request.primary, "secondary": request.secondary, "tertiary": request.tertiary}
        parents = tuple(self._find(field, text, request.method) for field, text in list(named.items())[:number])
        vae = self._find_vae(request.vae)
        _check_pattern(request.discard)
        special = special_of(*(_header(one.path) for one in parents[:2])) if number > 1 else ""
        target = self._target(request, parents, special)
        with self._lock:
            self._refuse_taken(request, target, parents, vae)
            if sum(not one.ended for one in self._merges.values()) >= MOST_WAITING:
                raise TooMany("primary", f"{MOST_WAITING} merges are waiting already; try again when some are done")
            merge = Merge(uuid.uuid4().hex, request, parents, vae, target, special)
            self._merges[merge.id] = merge
            ended = [one.id for one in self._merges.values() if one.ended]
            for id in ended[: max(0, len(ended) - MOST_KEPT)]:
                del self._merges[id]
        self._tell(merge)
        self._between_jobs(lambda ends: self._run(merge, ends))
        return merge

    def get(self, id: str) -> Merge:
        """Raises KeyError."""
        return self._merges[id]

    def cancel(self, id: str) -> Merge:
        """Ends it between two pieces; nothing of it stays. Ended already: nothing happens. Raises KeyError."""
        with self._lock:
            merge = self._merges[id]
            merge.stop = True
            waiting = merge.state == "queued"
            if waiting:
                merge.state = "cancelled"
        if waiting:
            self._tell(merge)
        return merge

    def present(self) -> Iterable[Event]:
        """For a page that has just come: those that are not done, and the last that is."""
        with self._lock:
            merges = list(self._merges.values())
        last = [one for one in merges if one.ended][-1:]
        return [self._event(one) for one in merges if not one.ended or one in last]

    # --- what is asked for ---------------------------------------------------------------------------------------

    def _find(self, field: str, text: str, method: Method) -> Checkpoint:
        if not text.strip():
            letter = {"primary": "A", "secondary": "B", "tertiary": "C"}[field]
            raise MergeRefused(field, f"choose a checkpoint as model {letter}; {method} needs {PARENTS[method]}")
        try:
            return self._library.find(text)
        except UnknownCheckpoint as error:
            raise NotThere(field, str(error)) from error
        except ModelFileError as error:
            raise MergeRefused(field, str(error)) from error

    def _find_vae(self, name: str) -> VaeFile | None:
        if name in ("", NONE):
            return None
        try:
            return self._vaes.find(name)
        except UnknownVae as error:
            raise NotThere("vae", str(error)) from error

    def _target(self, request: MergeRequest, parents: Sequence[Checkpoint], special: Special) -> Path:
        name = request.name.strip().removesuffix(".safetensors")
        name = name or automatic_name(request.method, [one.model_name for one in parents], request.multiplier)
        suffix = f".{special}" if special else ""
        stem = safe_name(name, MOST_NAME)
        if not stem or stem.lower().endswith(".vae"):
            raise MergeRefused("name", f"{request.name[:80]!r} can't be the name of a checkpoint; choose another one")
        return self.folder / f"{stem}{suffix}.safetensors"

    def _refuse_taken(
        self, request: MergeRequest, target: Path, parents: Sequence[Checkpoint], vae: VaeFile | None
    ) -> None:
        sources = [*(one.path for one in parents), *([vae.path] if vae else [])]
        if any(_same(target, path) for path in sources):
            raise AlreadyThere("name", f"{target.name} is one of the files that are merged; choose another name")
        if any(not one.ended and _same(target, one.target) for one in self._merges.values()):
            raise AlreadyThere("name", f"another merge is about to write {target.name}; choose another name")
        if request.overwrite:
            return
        config = target.with_suffix(".yaml")
        if os.path.lexists(target):
            raise AlreadyThere("name", f"{target.name} is there already; choose another name, or allow overwriting it")
        if config_of(request.config_from, parents) and os.path.lexists(config):
            raise AlreadyThere("name", f"{config.name} is there already; choose another name, or allow overwriting it")

    # --- the worker's thread -------------------------------------------------------------------------------------

    def _run(self, merge: Merge, ends: Ends) -> None:
        """To its end, whatever happens."""
        with self._lock:
            if merge.ended:
                return
            merge.state = "running"
        before = self._status()
        try:
            self._make(merge, _Teller(self, merge, ends))
            state: State = "done"
        except _Stopped:
            state = "cancelled"
        except Exception as error:
            state, merge.error = "failed", _sentence(error, merge.target)
        finally:
            self._report(*before)
        merge.state = state
        log.info("merge of %s: %s", merge.target.name, merge.error or state)
        self._tell(merge)

    def _make(self, merge: Merge, teller: "_Teller") -> None:
        from modules.families import merge as arithmetic
        from modules.families.formats import header_of, vae_header

        teller.phase("waiting", 0)
        request = merge.request
        began = [fingerprint_of(one.path) for one in merge.parents]
        sources = [arithmetic.Source(one.path, header_of(one.path)) for one in merge.parents]
        vae = arithmetic.Source(merge.vae.path, vae_header(merge.vae.path)) if merge.vae else None
        names = [*sources[0].header.tensors, *(vae.header.tensors if vae else ())]
        discarded = matching(request.discard, names) if request.discard else frozenset()
        plan = arithmetic.merge_plan(sources, request.method, request.multiplier, request.half, vae, discarded)
        merge.warnings += plan.warnings
        parents = self._parents(merge, [source.header for source in sources], teller)
        header = arithmetic.header_bytes(plan, _metadata(merge, parents, plan.special))
        self._refuse_full_disk(merge, len(header) + plan.size)
        teller.phase("merging", plan.size)
        config: Path | None = None
        try:
            with growing(merge.target, request.overwrite) as file:
                arithmetic.write(plan, header, file, teller.watch)
                if [fingerprint_of(one.path) for one in merge.parents] != began:
                    raise ValueError("one of the models was changed while it was merged; merge again")
                teller.phase("saving", plan.size)
                config = _place_config(merge)
        except BaseException:
            if config:
                config.unlink(missing_ok=True)
            raise
        self._finished()
        merge.checkpoint = next((one.title for one in self._library.list() if one.path == merge.target), None)

    def _parents(self, merge: Merge, headers: Sequence[Header], teller: "_Teller") -> list[Parent]:
        """With their hashes, where the recipe tells them."""
        request = merge.request
        if not (request.save_metadata and request.add_recipe):
            return [Parent(one, None, h.metadata) for one, h in zip(merge.parents, headers, strict=True)]
        teller.phase("hashing", sum(one.size for one in merge.parents))
        found, before = [], 0

        def watch(done: int, total: int) -> None:
            teller.watch(before + done, total)

        for one, header in zip(merge.parents, headers, strict=True):
            hashed = self._library.hashed(one, watch)
            before += one.size
            legacy = legacy_hash(one.path) if one.path.is_file() else None
            found.append(Parent(hashed, legacy, header.metadata))
        return found

    def _refuse_full_disk(self, merge: Merge, needed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE:
            raise ValueError(
                f"{merge.target.name} needs {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free on the "
                f"disk of the folder {self.folder.name}; make room, or save as float16"
            )

    # --- what the others hear ------------------------------------------------------------------------------------

    def _event(self, merge: Merge) -> Event:
        return Event("merge", merge.described(), job=merge.id)

    def _tell(self, merge: Merge) -> None:
        self._bus.publish(self._event(merge))


class _Stopped(Exception):
    """The user has cancelled it, or the program ends."""


class _Teller:
    """Tells how far a merge is, and stops it where somebody wants that."""

    def __init__(self, merges: Merges, merge: Merge, ends: Ends):
        self._merges, self._merge, self._ends = merges, merge, ends
        self._next = 0.0

    def phase(self, phase: Phase, total: int) -> None:
        self._merge.phase, self._merge.done, self._merge.total = phase, 0, total
        self._next = 0.0
        self.watch(0, total)

    def watch(self, done: int, total: int) -> None:
        if self._merge.stop or self._ends():
            raise _Stopped
        now = time.monotonic()
        self._merge.done = done
        if now < self._next:
            return
        self._next = now + 1 / TOLD_A_SECOND
        self._merges._tell(self._merge)
        part = done / self._merge.total if self._merge.total else 0
        doing = "hashing the models for" if self._merge.phase == "hashing" else "merging"
        self._merges._report("loading", f"{doing} {self._merge.target.stem}, {part:.0%}", part)


def _metadata(merge: Merge, parents: Sequence[Parent], special: Special) -> dict[str, str]:
    """What the file says of itself: copied, the user's own, the recipe; and always how it is to be read."""
    request = merge.request
    needed = {key: value for key, value in parents[0].metadata.items() if key in NEEDED}
    if not request.save_metadata:
        return {"format": "pt", **needed}
    found = shared_metadata([parent.metadata for parent in parents]) if request.copy_metadata else needed
    found |= {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in request.metadata.items()
    }
    if request.add_recipe:
        recipe = Recipe(
            request.method,
            request.multiplier,
            request.half,
            request.config_from,
            merge.vae.name if merge.vae else NONE,
            request.discard,
            request.name,
        )
        found |= recipe_metadata(recipe, parents, special)
    return {**found, "format": "pt"}


def shared_metadata(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What a merge of checkpoints with these takes over. How it is to be read, the first one alone says."""
    needed = {key: value for key, value in metadata[0].items() if key in NEEDED} if metadata else {}
    return {key: value for key, value in together(metadata).items() if key not in NEEDED} | needed


def _check_pattern(pattern: str) -> None:
    if not pattern:
        return
    try:
        matching(pattern, ())
    except PatternError as error:
        raise MergeRefused("discard", str(error)) from error


def _place_config(merge: Merge) -> Path | None:
    """The .yaml beside the result. Returns it if it is new."""
    source = config_of(merge.request.config_from, merge.parents)
    target = merge.target.with_suffix(".yaml")
    there = os.path.lexists(target)
    if source is None or source.config is None:
        if merge.request.config_from in ("B", "C"):
            merge.warnings.append(f"model {merge.request.config_from} has no .yaml beside it: none was copied")
        if there:
            merge.warnings.append(f"{target.name} was there already, and is read as the configuration of the result")
        return None
    if there and not merge.request.overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    with source.config.open("rb") as file:
        data = file.read(MOST_CONFIG + 1)
    if len(data) > MOST_CONFIG:
        raise ValueError(f"{source.config.name} is larger than {MOST_CONFIG >> 20} MiB and no configuration")
    write_whole(target, data)
    return None if there else target


def _header(path: Path) -> Header | None:
    """Of a safetensors file, without torch; the others are looked at when they are merged."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return None
    try:
        return read_header(path)
    except ModelFileError as error:
        raise MergeRefused("primary", str(error)) from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


def _sentence(error: Exception, target: Path) -> str:
    """What the user reads; a traceback goes to the log where the fault is ours."""
    if isinstance(error, ValueError):  # the refusals of all layers are
        return str(error)
    if isinstance(error, FileExistsError):
        name = Path(error.filename or target).name
        return f"{name} has come there meanwhile; nothing was written. Choose another name, or allow overwriting it"
    if isinstance(error, OSError):
        log.error("a merge failed", exc_info=error)
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
        why = "the disk is full" if full else error.strerror or str(error)
        return f"{target.name} was not written: {why}; nothing of it is left on the disk"
    if isinstance(error, MemoryError):
        return "there was not enough memory to merge; close other programs and try again"
    log.error("a merge failed", exc_info=error)
    return f"internal error ({type(error).__name__}); the log has the details"
