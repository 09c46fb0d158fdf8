"""What was learned of model files, kept from start to start: sha256 and soundness by path, size, mtime and inode.
Only a cache: where its file is broken or cannot be written, it forgets, and says so in the log."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from modules.library.hashes import Fingerprint

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode TEXT, sha256 TEXT, checked INTEGER, problem TEXT)"""


@dataclass(frozen=True)
class FileFacts:
    fingerprint: Fingerprint
    sha256: str | None = None
    checked: bool = False  # whether the whole header was read
    problem: str | None = None


class FileCache:
    """All rows live in memory; the SQLite file below only outlasts the process."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._facts: dict[Path, FileFacts] = {}
        self._usable = True
        try:
            self._load()
        except sqlite3.DatabaseError as error:
            self._start_anew(error)
        except OSError as error:
            self._give_up(error)

    def get(self, path: Path, fingerprint: Fingerprint) -> FileFacts | None:
        facts = self._facts.get(path)
        return facts if facts is not None and facts.fingerprint == fingerprint else None

    def put(self, news: Iterable[tuple[Path, FileFacts]]) -> None:
        with self._lock:
            rows = dict(news)
            self._facts.update(rows)
            if rows and self._usable:
                try:
                    self._write(rows)
                except sqlite3.DatabaseError as error:
                    self._give_up(error)

    def _load(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as database, database:
            database.execute(_TABLE)
            rows = database.execute(
                "SELECT path, size, mtime_ns, inode, sha256, checked, problem FROM files"
            ).fetchall()
        for path, size, mtime_ns, inode, sha256, checked, problem in rows:
            facts = FileFacts(Fingerprint(size, mtime_ns, int(inode)), sha256, bool(checked), problem)
            self._facts[Path(os.fsdecode(path))] = facts

    def _write(self, rows: dict[Path, FileFacts]) -> None:
        with closing(self._connect()) as database, database:
            database.execute(_TABLE)
            database.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
                # inode numbers have 64 bits without sign, SQLite's integers have one
                [
                    (
                        os.fsencode(p),
                        f.fingerprint.size,
                        f.fingerprint.mtime_ns,
                        str(f.fingerprint.inode),
                        f.sha256,
                        f.checked,
                        f.problem,
                    )
                    for p, f in rows.items()
                ],
            )

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=5)

    def _start_anew(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        log.warning("the cache %s cannot be used (%s); it starts anew, the old one is %s", self.path, error, aside.name)
        self._facts.clear()
        try:
            os.replace(self.path, aside)
            self._load()
        except (OSError, sqlite3.DatabaseError) as second:
            self._give_up(second)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        log.warning(
            "the cache %s cannot be used (%s); hashes will be computed again at the next start", self.path, error
        )
