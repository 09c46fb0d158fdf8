"""Sees that folders of models have changed, so that nobody has to ask for a new list: their times are looked at every
few seconds, while somebody listens. A file that is replaced without a change of its folder is seen within a minute."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from modules.library.catalogue import Catalogue, ModelRecord
from modules.library.kinds import KINDS, Kind
from modules.library.roots import folders_below

log = logging.getLogger(__name__)

POLL_S = 3.0
WHOLE_EVERY = 20  # polls: then everything is looked at anew


class Watcher:
    """`heard()`: whether anybody listens. `tell(kinds)`: the lists of these kinds have changed."""

    def __init__(self, models: Catalogue, heard: Callable[[], bool], tell: Callable[[Sequence[Kind]], None]):
        self._models, self._heard, self._tell = models, heard, tell
        self._folders: dict[Path, dict[str, int]] = {}  # of each root: every folder, and when it changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._polls = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def poll(self) -> tuple[Kind, ...]:
        """Looks for changes once; returns the kinds whose lists are others now."""
        self._polls += 1
        whole = self._polls % WHOLE_EVERY == 0
        moved = self._moved()
        kinds = [kind for kind in KINDS if whole or self._roots(kind) & moved or self._unsettled(kind)]
        changed = []
        for kind in kinds:
            before = _state(self._models.records(kind))
            self._models.refresh(kind)
            if _state(self._models.records(kind)) != before:
                changed.append(kind)
        if changed:
            log.info("models have changed: %s", ", ".join(changed))
            self._tell(changed)
        return tuple(changed)

    def _run(self) -> None:
        self._moved()  # what is there now
        while not self._stop.wait(POLL_S):
            if self._heard():
                try:
                    self.poll()
                except Exception:  # a border: the next poll may go better
                    log.exception("looking for new models failed")

    def _moved(self) -> set[Path]:
        """Roots in which a folder has changed, come or gone since the last call."""
        moved = set()
        roots = {root.path: root for kind in KINDS for root in self._models.roots.get(kind, ())}
        for path, root in roots.items():
            known = self._folders.get(path)
            if known is None or _times(known) != known:
                if known is not None:
                    moved.add(path)
                self._folders[path] = _times([str(path), *folders_below(root)])
        return moved

    def _roots(self, kind: Kind) -> set[Path]:
        own = {root.path for root in self._models.roots.get(kind, ())}
        # VAEs lie among the checkpoints too
        return own | (self._roots("checkpoint") if kind == "vae" else set())

    def _unsettled(self, kind: Kind) -> bool:
        """Whether a file has still to be looked at, or one that could not be used has changed."""
        return any(_has_changed(record) for record in self._models.records(kind))


def _has_changed(record: ModelRecord) -> bool:
    if not record.problem:
        return not record.facts.content
    try:
        status = os.stat(record.path)
    except OSError:
        return record.size > 0
    return record.size > 0 and (status.st_size, status.st_mtime_ns) != (record.size, record.mtime_ns)


def _state(records: Iterable[ModelRecord]) -> frozenset[tuple[object, ...]]:
    """What of the records is worth telling: of a file that grows, its size is not."""
    return frozenset((one.id, one.path, one.value, one.problem and one.problem[:10]) for one in records)


def _times(folders: Iterable[str]) -> dict[str, int]:
    times = {}
    for folder in folders:
        try:
            times[folder] = os.stat(folder).st_mtime_ns
        except OSError:
            times[folder] = 0
    return times
