"""Pictures that are not kept under outputs/: those of requests that asked for no file, and those that could not be
written where they belong. Bounded: the oldest go first."""

import logging
import threading
from collections import OrderedDict
from pathlib import Path

log = logging.getLogger(__name__)

MOST_BYTES = 2 * 2**30  # on the disk
MOST_MEMORY = 256 * 2**20  # bytes


class Spool:
    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, most_memory: int = MOST_MEMORY):
        self.folder, self._most_bytes, self._most_memory = folder, most_bytes, most_memory
        self._lock = threading.Lock()
        self._memory: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._written = most_bytes  # so that the first write looks at what earlier runs left

    def path(self, job: str, index: int) -> Path:
        return self.folder / job / f"{index:04d}.png"

    def beside_path(self, job: str, index: int, place: int) -> Path:
        return self.folder / job / f"{index:04d}-{place}.png"

    def beside(self, job: str, index: int) -> list[Path]:
        return sorted(self.folder.glob(f"{job}/{index:04d}-*.png"))

    def keep_in_memory(self, job: str, index: int, data: bytes) -> None:
        with self._lock:
            self._memory[job, index] = data
            while len(self._memory) > 1 and sum(map(len, self._memory.values())) > self._most_memory:
                self._memory.popitem(last=False)

    def from_memory(self, job: str, index: int) -> bytes | None:
        with self._lock:
            return self._memory.get((job, index))

    def make_room(self, needed: int) -> None:
        """Deletes the oldest pictures once the folder would be too large. Call it before a picture is written."""
        self._written += needed
        if self._written <= self._most_bytes:
            return
        files = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in self.folder.glob("*/*.png"))
        self._written = sum(size for _, size, _ in files) + needed
        for _, size, file in files:
            if self._written <= self._most_bytes:
                return
            file.unlink(missing_ok=True)
            self._written -= size
            if not any(file.parent.iterdir()):
                file.parent.rmdir()

    def forget(self, job: str) -> None:
        """Deletes what is left of a job that the queue has forgotten."""
        for file in sorted(self.folder.glob(f"{job}/*.png")):
            file.unlink(missing_ok=True)
        if (self.folder / job).is_dir():
            (self.folder / job).rmdir()
