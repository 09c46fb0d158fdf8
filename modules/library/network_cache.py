"""What a first look at each network file told, kept from start to start. Only a cache: where its SQLite file is broken
or cannot be written, it forgets, and says so in the log."""

import logging
import os
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from modules.library.facts import Facts

log = logging.getLogger(__name__)

_FIRST = "path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, is_network INTEGER"
_TEXTS = ("name", "alias", "trained_for", "stated_hash", *Facts._fields)
_TABLE = f"CREATE TABLE IF NOT EXISTS facts ({_FIRST}, {', '.join(f'{name} TEXT' for name in _TEXTS)})"
_COLUMNS = f"path, size, mtime_ns, is_network, {', '.join(_TEXTS)}"
_MARKS = ",".join("?" * (len(_TEXTS) + 4))


@dataclass(frozen=True, slots=True)
class Looked:
    size: int
    mtime_ns: int
    is_network: bool = True  # False: a picture that is only a picture
    name: str | None = None  # where the file says another than it is called by
    alias: str | None = None
    trained_for: str = "Unknown"
    stated_hash: str | None = None
    facts: Facts = Facts()
    problem: str | None = None  # such a file is looked at again every time

    def row(self) -> tuple[object, ...]:
        first = (self.size, self.mtime_ns, self.is_network, self.name, self.alias, self.trained_for, self.stated_hash)
        return (*first, *self.facts)


class NetworkCache:
    """All rows live in memory."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Looked] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=5)) as database, database:
                database.execute(_TABLE)
                for row in database.execute(f"SELECT {_COLUMNS} FROM facts"):
                    self._known[os.fsdecode(row[0])] = Looked(
                        row[1], row[2], bool(row[3]), row[4], row[5], row[6], row[7], Facts._make(row[8:])
                    )
        except (OSError, sqlite3.DatabaseError) as error:
            self._complain(error)

    def get(self, path: str, size: int, mtime_ns: int) -> Looked | None:
        looked = self._known.get(path)
        return looked if looked is not None and (looked.size, looked.mtime_ns) == (size, mtime_ns) else None

    def put(self, news: Mapping[str, Looked]) -> None:
        if not news:
            return
        with self._lock:
            self._known.update(news)
            rows = [(os.fsencode(path), *looked.row()) for path, looked in news.items()]
            try:
                with closing(sqlite3.connect(self.path, timeout=5)) as database, database:
                    database.execute(_TABLE)
                    database.executemany(f"INSERT OR REPLACE INTO facts ({_COLUMNS}) VALUES ({_MARKS})", rows)
            except sqlite3.DatabaseError as error:
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        log.warning("the cache %s cannot be used (%s); networks are looked at anew at every start", self.path, error)
