"""The queue's table: one SQLite file (WAL, synchronous=FULL), one process, many threads. Every method is one
transaction, committed when it returns. Knows nothing of workers and events."""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from modules.generation.request import GenerationRequest
from modules.jobs.job import FINISHED, Job, JobImage, ModelIdentity, State

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KEEP_FINISHED = 10_000  # jobs; older ones are forgotten, their pictures stay
MOST_ATTEMPTS = 2  # a job that ended the process twice without a new picture would do it again
CHECKED_AT_START = 256 * 2**20  # bytes; a larger file is not read as a whole before the port is open

SCHEMA = """
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    source TEXT NOT NULL,
    client TEXT NOT NULL,
    request TEXT NOT NULL,
    settings TEXT NOT NULL,
    model TEXT NOT NULL,
    key TEXT UNIQUE,
    key_hash TEXT,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    stop INTEGER NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE state IN ('queued', 'running');
CREATE INDEX jobs_client ON jobs (client, sequence);
CREATE TABLE images (
    sequence INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
    idx INTEGER NOT NULL,
    state TEXT NOT NULL, -- 'intent': about to be written to path; 'saved'; 'memory': could not be written
    path TEXT,
    kept INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    infotext TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    warning TEXT,
    digest TEXT, -- sha256 of the file's bytes, so that an intent can be told from an older file of that name
    PRIMARY KEY (sequence, idx)
) WITHOUT ROWID;
"""


class StoreUnusable(Exception):
    """The database file cannot be used as it is, and must not be touched: newer, locked, read-only."""


class KeyReused(ValueError):
    """The same key came with another request."""


@dataclass(frozen=True)
class Recovery:
    failed: list[Job]  # given up for good
    unwritten: list[Path]  # where pictures should have been written


class JobStore:
    """`problems` says, in sentences for people, what was wrong with the file. When it cannot be used at all, the jobs
    of this run live in memory."""

    def __init__(self, database: Path):
        self.problems: list[str] = []
        self._lock = threading.RLock()
        self._guard: IO[bytes] | None = None
        self._connection = self._open(database)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._guard:
                self._guard.close()

    # --- opening -------------------------------------------------------------------------------------------------

    def _open(self, database: Path) -> sqlite3.Connection:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._guard = lock_file(database.with_suffix(".lock"))
            try:
                return open_database(database)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise StoreUnusable(f"{database} cannot be opened ({error})") from error
                kept = set_aside(database)
                self.problems.append(
                    f"The job database was damaged ({error}). It was moved to {kept.name} and a new one begun; "
                    "pictures are not affected."
                )
                return open_database(database)
        except (StoreUnusable, OSError) as error:
            self.problems.append(f"{error}. Jobs of this run are kept in memory only and do not survive a restart.")
            return open_database(None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    # --- putting in ----------------------------------------------------------------------------------------------

    def add(
        self,
        id: str,
        source: str,
        client: str,
        request: GenerationRequest,
        settings: dict[str, Any],
        model: ModelIdentity,
        key: str | None,
        key_hash: str | None,
    ) -> tuple[Job, bool]:
        """The job, and whether it is new: a key that is known gives the job that it came with first."""
        with self._transaction() as connection:
            if key is not None and (known := self._with_key(key, key_hash)):
                return known, False
            connection.execute(
                "INSERT INTO jobs (id, state, source, client, request, settings, model, key, key_hash, created)"
                " VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    id,
                    source,
                    client,
                    request.model_dump_json(),
                    json.dumps(settings),
                    json.dumps(asdict(model)),
                    key,
                    key_hash,
                    time.time(),
                ),
            )
            added = self.get(id)
            assert added is not None  # in the same transaction
            return added, True

    def with_key(self, key: str, key_hash: str | None) -> Job | None:
        """The job that came with this key; raises KeyReused when its request was another one."""
        with self._lock:
            return self._with_key(key, key_hash)

    def _with_key(self, key: str, key_hash: str | None) -> Job | None:
        row = self._connection.execute("SELECT * FROM jobs WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row["key_hash"] != key_hash:
            raise KeyReused(
                f"the key {key.partition(':')[2]!r} was used for another request; take a new key for a new request"
            )
        return self._jobs([row])[0]

    # --- looking -------------------------------------------------------------------------------------------------

    def named(self, key: str) -> Job | None:
        """The job that came with this key, whatever its request was."""
        with self._lock:
            row = self._connection.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
        return None if row is None else self.get(row["id"])

    def tasks(self, client: str) -> list[tuple[str, str | None]]:
        """(id, key) of the client's jobs that have not ended, in order."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, key FROM jobs WHERE state IN ('queued', 'running') AND client = ? ORDER BY sequence",
                (client,),
            )
            return [(row["id"], row["key"]) for row in rows]

    def get(self, id: str) -> Job | None:
        with self._lock:
            rows = self._connection.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchall()
            return next(iter(self._jobs(rows)), None)

    def of_client(self, client: str, limit: int) -> list[Job]:
        """The newest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT * FROM jobs WHERE client = ? ORDER BY sequence DESC LIMIT ?", (client, limit)
            ).fetchall()
            return self._jobs(rows)

    def unfinished(self, client: str | None = None) -> list[Job]:
        """Running and waiting jobs in their order."""
        where = "state IN ('queued', 'running')" + ("" if client is None else " AND client = ?")
        with self._lock:
            rows = self._connection.execute(
                f"SELECT * FROM jobs WHERE {where} ORDER BY sequence", () if client is None else (client,)
            ).fetchall()
            return self._jobs(rows)

    def failures(self, limit: int) -> list[str]:
        """What was wrong with the last jobs that failed; the oldest of them first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT error FROM jobs WHERE state = 'failed' ORDER BY sequence DESC LIMIT ?", (limit,)
            ).fetchall()
        return [row["error"] for row in reversed(rows) if row["error"]]

    def waiting(self) -> list[tuple[str, str]]:
        """(id, client) of the waiting jobs in their order."""
        with self._lock:
            rows = self._connection.execute("SELECT id, client FROM jobs WHERE state = 'queued' ORDER BY sequence")
            return [(row["id"], row["client"]) for row in rows]

    def count_waiting(self, before: int | None = None) -> int:
        """Waiting jobs, or only those that come before the sequence."""
        with self._lock:
            (number,) = self._connection.execute(
                "SELECT count(*) FROM jobs WHERE state = 'queued' AND sequence < ?",
                (before if before is not None else 2**62,),
            ).fetchone()
            return int(number)

    def _jobs(self, rows: list[sqlite3.Row]) -> list[Job]:
        read = [(row, _request(row)) for row in rows]
        return [_job(row, request, self._images(row["sequence"])) for row, request in read if request is not None]

    def _images(self, sequence: int) -> tuple[JobImage, ...]:
        rows = self._connection.execute(
            "SELECT * FROM images WHERE sequence = ? AND state != 'intent' ORDER BY idx", (sequence,)
        )
        return tuple(_image(row) for row in rows)

    # --- running -------------------------------------------------------------------------------------------------

    def take(self) -> Job | None:
        """The next waiting job, now running."""
        with self._transaction() as connection:
            row = connection.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY sequence LIMIT 1").fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE id = ?",
                (time.time(), row["id"]),
            )
            return self.get(row["id"])

    def put_back(self, job: Job) -> None:
        """A job that runs waits again, at its old place, as if it had not been begun."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'queued', started = NULL, attempts = max(attempts - 1, 0)"
                " WHERE sequence = ? AND state = 'running'",
                (job.sequence,),
            )

    def ask_to_stop(self, job: Job) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET stop = 1 WHERE sequence = ?", (job.sequence,))

    def finish(self, job: Job, state: State, error: str | None = None) -> Job:
        if state not in FINISHED:
            raise ValueError(f"a job does not finish as {state!r}")
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ? WHERE sequence = ?",
                (state, error, time.time(), job.sequence),
            )
            finished = self.get(job.id)
        assert finished is not None  # only finished jobs are ever deleted
        return finished

    def intend(self, job: Job, image: JobImage, data: bytes) -> None:
        """Before the file is written: where it will be. What was intended before for this picture did not happen."""
        self._put_image(job, image, "intent", hashlib.sha256(data).hexdigest())

    def saved(self, job: Job, image: JobImage) -> None:
        """The picture is there, whole; the job has got on."""
        self._put_image(job, image, "saved" if image.path else "memory")

    def _put_image(self, job: Job, image: JobImage, state: str, digest: str | None = None) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO images"
                " (sequence, idx, state, path, kept, seed, infotext, width, height, warning, digest)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.sequence,
                    image.index,
                    state,
                    str(image.path) if image.path else None,
                    image.kept,
                    image.seed,
                    image.infotext,
                    image.width,
                    image.height,
                    image.warning,
                    digest,
                ),
            )
            if state != "intent":
                connection.execute("UPDATE jobs SET attempts = 0 WHERE sequence = ?", (job.sequence,))

    # --- after a start -------------------------------------------------------------------------------------------

    def recover(self) -> Recovery:
        """Settles what the last process left half-done."""
        failed, unwritten = [], []
        with self._transaction() as connection:
            for row in connection.execute("SELECT * FROM images WHERE state = 'intent'").fetchall():
                if is_file_of(Path(row["path"]), row["digest"]):  # renamed into place, but not noted any more
                    change = "UPDATE images SET state = 'saved' WHERE sequence = ? AND idx = ?"
                    connection.execute("UPDATE jobs SET attempts = 0 WHERE sequence = ?", (row["sequence"],))
                else:
                    unwritten.append(Path(row["path"]))
                    change = "DELETE FROM images WHERE sequence = ? AND idx = ?"
                connection.execute(change, (row["sequence"], row["idx"]))
            unfinished = connection.execute(
                "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY sequence"
            ).fetchall()
            for row in unfinished:
                if _request(row) is None:
                    connection.execute(
                        "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE sequence = ?",
                        (
                            time.time(),
                            "the request was queued by another version, and this one refuses it",
                            row["sequence"],
                        ),
                    )
            running = [row for row in unfinished if row["state"] == "running"]
            connection.execute(
                "DELETE FROM images WHERE state = 'memory' AND sequence IN"
                " (SELECT sequence FROM jobs WHERE state IN ('queued', 'running'))"
            )
        for job in self._jobs(running):
            if job.stop:
                self.finish(job, "interrupted")
            elif job.attempts >= MOST_ATTEMPTS:
                sentence = "the server died while running it, twice; it is not tried again"
                failed.append(self.finish(job, "failed", sentence))
            else:
                with self._transaction() as connection:
                    connection.execute("UPDATE jobs SET state = 'queued' WHERE sequence = ?", (job.sequence,))
        return Recovery(failed, unwritten)

    def prune(self, keep: int = KEEP_FINISHED) -> list[str]:
        """Forgets the oldest finished jobs beyond `keep`; returns their ids."""
        with self._transaction() as connection:
            rows = connection.execute(
                "DELETE FROM jobs WHERE sequence IN (SELECT sequence FROM jobs WHERE state NOT IN ('queued', 'running')"
                " ORDER BY sequence DESC LIMIT -1 OFFSET ?) RETURNING id",
                (keep,),
            ).fetchall()
            return [row["id"] for row in rows]

    def pictures(self) -> set[str]:
        """The ids of all input pictures that the requests name."""
        with self._lock:
            rows = self._connection.execute("SELECT request FROM jobs WHERE request LIKE '%\"init\":{%'").fetchall()
        return {id for row in rows for id in GenerationRequest.model_validate_json(row["request"]).pictures}


def open_database(database: Path | None) -> sqlite3.Connection:
    """Ready to use, None: in memory. Raises sqlite3.DatabaseError for a damaged file, StoreUnusable for a newer one."""
    connection = sqlite3.connect(database or ":memory:", timeout=2, check_same_thread=False, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreUnusable(
                f"{database} was written by a newer version (its layout is {version}, this program knows "
                f"{SCHEMA_VERSION}); start the newer version, or another --data-dir"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if database and database.stat().st_size <= CHECKED_AT_START:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        if version < SCHEMA_VERSION:
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        else:
            connection.execute("SELECT count(*) FROM jobs, images LIMIT 0")
        connection.execute("BEGIN IMMEDIATE")  # another program's lock shows now, not at the first job
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def is_file_of(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def lock_file(path: Path) -> IO[bytes]:
    """Holds `path` for this process until it ends, however it ends: two servers must not run the same jobs."""
    file = path.open("ab")
    try:
        if hasattr(file, "fileno"):
            _lock(file)
    except OSError as error:
        file.close()
        raise StoreUnusable(
            f"another server uses the data folder {path.parent} (lock {path.name}: {error.strerror}); "
            "stop it, or start this one with another --data-dir"
        ) from error
    return file


def set_aside(database: Path) -> Path:
    """Moves a damaged database and its side files out of the way; nothing is deleted."""
    moved = database.with_name(f"{database.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}")
    for suffix in ("", "-wal", "-shm"):
        side = database.with_name(database.name + suffix)
        if side.exists():
            side.replace(moved.with_name(moved.name + suffix))
    return moved


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _request(row: sqlite3.Row) -> GenerationRequest | None:
    """None for a request that another version took and this one does not."""
    try:
        return GenerationRequest.model_validate_json(row["request"])
    except ValidationError as error:
        log.warning("the request of job %s cannot be read by this version: %s", row["id"], error)
        return None


def _job(row: sqlite3.Row, request: GenerationRequest, images: Iterable[JobImage]) -> Job:
    return Job(
        id=row["id"],
        sequence=row["sequence"],
        state=row["state"],
        source=row["source"],
        client=row["client"],
        request=request,
        settings=json.loads(row["settings"]),
        model=ModelIdentity(**json.loads(row["model"])),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        attempts=row["attempts"],
        stop=bool(row["stop"]),
        error=row["error"],
        images=tuple(images),
    )


def _image(row: sqlite3.Row) -> JobImage:
    return JobImage(
        index=row["idx"],
        path=Path(row["path"]) if row["path"] else None,
        kept=bool(row["kept"]),
        seed=row["seed"],
        infotext=row["infotext"],
        width=row["width"],
        height=row["height"],
        warning=row["warning"],
    )
