"""What was learned of model files, kept from start to start: sha256, soundness and what their headers tell, by path,
size, mtime and inode.
Only a cache: where its file is broken or cannot be written, it forgets, and says so in the log."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from modules.library.facts import Facts
from modules.library.hashes import Digests, Fingerprint, digests_of
from modules.library.header import ModelFileError

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode TEXT, sha256 TEXT, checked INTEGER, problem TEXT,
    body_sha256 TEXT)"""
_ADDED = ("body_sha256", *Facts._fields)  # columns that earlier versions did not have
_COLUMNS = ", ".join(("path, size, mtime_ns, inode, sha256, checked, problem", *_ADDED))
_MARKS = ", ".join("?" * (len(_ADDED) + 7))


@dataclass(frozen=True)
class FileFacts:
    fingerprint: Fingerprint
    sha256: str | None = None
    checked: bool = False  # whether the whole header was read
    problem: str | None = None
    body_sha256: str | None = None  # known together with sha256, but for rows of earlier versions
    facts: Facts = Facts()


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

    def known(self, path: Path, size: int, mtime_ns: int) -> FileFacts | None:
        """As `get`, for who has not looked at the inode."""
        facts = self._facts.get(path)
        fits = facts is not None and (facts.fingerprint.size, facts.fingerprint.mtime_ns) == (size, mtime_ns)
        return facts if fits else None

    def put(self, news: Iterable[tuple[Path, FileFacts]]) -> None:
        with self._lock:
            rows = dict(news)
            self._facts.update(rows)
            if rows and self._usable:
                try:
                    self._write(rows)
                except sqlite3.DatabaseError as error:
                    self._give_up(error)

    def digests(self, path: Path, watch: Callable[[int, int], None] | None = None) -> Digests:
        """The hashes of a file, read from it unless they are known of its present state."""
        try:
            now = Fingerprint.of(path.stat())
        except OSError as error:
            raise ModelFileError(path, f"is not there any more ({error.strerror or error})") from None
        known = self.get(path, now) or FileFacts(now)
        if known.sha256 and known.body_sha256:
            return Digests(known.sha256, known.body_sha256)
        digests = digests_of(path, watch)
        self.put([(path, replace(known, sha256=digests.sha256, body_sha256=digests.body_sha256))])
        return digests

    def _load(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as database, database:
            database.execute(_TABLE)
            self._add_columns(database)
            rows = database.execute(f"SELECT {_COLUMNS} FROM files").fetchall()
        for path, size, mtime_ns, inode, sha256, checked, problem, body_sha256, *told in rows:
            known = told[0] is not None  # else it is a row of an earlier version: the file is looked at again
            facts = Facts._make(told) if known else Facts()
            fingerprint = Fingerprint(size, mtime_ns, int(inode))
            self._facts[Path(os.fsdecode(path))] = FileFacts(
                fingerprint, sha256, bool(checked) and known, problem, body_sha256, facts
            )

    def _add_columns(self, database: sqlite3.Connection) -> None:
        there = {row[1] for row in database.execute("PRAGMA table_info(files)")}
        for column in _ADDED:
            if column not in there:
                database.execute(f"ALTER TABLE files ADD COLUMN {column} TEXT")

    def _write(self, rows: dict[Path, FileFacts]) -> None:
        with closing(self._connect()) as database, database:
            database.execute(_TABLE)
            self._add_columns(database)
            database.executemany(
                f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES ({_MARKS})",
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
                        f.body_sha256,
                        *f.facts,
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
