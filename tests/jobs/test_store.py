"""The table of jobs on real SQLite files: order, keys, recovery, and files that are damaged in every way."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from modules.generation.plan import settle
from modules.jobs.job import Job, JobImage, ModelIdentity
from modules.jobs.store import SCHEMA_VERSION, JobStore, KeyReused
from tests.jobs.scene import request

MODEL = ModelIdentity("plain.safetensors", 100, 1, None)


def add(store: JobStore, number: int = 0, key: str | None = None, body: str | None = None, client: str = "tab") -> Job:
    settled = settle(request(seed=number, batch_count=3), lambda name: "plain.safetensors")
    job, _ = store.add(f"job{number}", "page", client, settled, {"jpeg_quality": 7}, MODEL, key, body)
    return job


def image(path: Path | None, index: int = 0) -> JobImage:
    return JobImage(index, path, True, 5, "a cat\nSeed: 5", 64, 64, None)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / "easel.db"


def test_a_job_comes_back_whole_from_another_opening_of_the_file(database):
    store = JobStore(database)
    job = add(store)
    store.saved(job, image(database.parent / "a.png"))
    kept = store.get(job.id)
    store.close()
    again = JobStore(database)
    assert again.get(job.id) == kept
    assert kept.request == job.request and kept.settings == {"jpeg_quality": 7} and kept.model == MODEL
    assert kept.images == (image(database.parent / "a.png"),)
    again.close()


def test_the_file_is_written_through_at_every_commit(database):
    store = JobStore(database)
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    store.close()


def test_order_is_by_sequence_whatever_the_clock_says(database, monkeypatch):
    store = JobStore(database)
    clock = iter([2000.0, 1000.0, 3000.0, 10.0, 5.0, 1.0])
    monkeypatch.setattr("modules.jobs.store.time.time", lambda: next(clock))
    jobs = [add(store, number) for number in range(3)]
    assert [store.take().id for _ in jobs] == ["job0", "job1", "job2"]
    assert store.take() is None
    store.close()


def test_a_key_gives_its_job_again_and_refuses_another_request(database):
    store = JobStore(database)
    first = add(store, 0, "key:k", "body")
    again, new = store.add("other", "page", "tab", first.request, {}, MODEL, "key:k", "body")
    assert (again, new) == (first, False)
    with pytest.raises(KeyReused, match="'k' was used for another request"):
        store.add("other", "page", "tab", first.request, {}, MODEL, "key:k", "another body")
    assert store.get("other") is None
    store.close()


def test_a_running_job_waits_again_after_a_crash_and_an_intent_is_settled_by_its_file(database):
    store = JobStore(database)
    add(store, 1)
    job = add(store, 0)
    store.take(), store.take()
    written, missing = database.parent / "written.png", database.parent / "missing.png"
    foreign = database.parent / "foreign.png"
    written.write_bytes(b"the picture")
    foreign.write_bytes(b"was there before")
    store.intend(job, image(written, 0), b"the picture")
    store.intend(job, image(missing, 1), b"never written")
    store.intend(job, image(foreign, 2), b"would have replaced it")
    store.close()

    store = JobStore(database)
    left = store.recover()
    assert left.failed == [] and left.unwritten == [missing, foreign]
    assert [one.state for one in store.unfinished()] == ["queued", "queued"]
    assert [one.index for one in store.get("job0").images] == [0]
    assert [one.id for one in store.unfinished()] == ["job1", "job0"]
    store.close()


def test_a_job_that_ends_the_process_twice_is_not_tried_a_third_time(database):
    store = JobStore(database)
    add(store)
    for _ in range(2):
        assert store.recover().failed == []
        assert store.take().id == "job0"
    (failed,) = store.recover().failed
    assert failed.state == "failed" and "the server died while running it" in failed.error
    assert store.take() is None
    store.close()


def test_a_new_picture_earns_another_try(database):
    store = JobStore(database)
    job = add(store)
    for number in range(3):
        assert store.take().id == "job0"
        store.saved(job, image(database.parent / f"{number}.png", number))
        assert store.recover().failed == []
    store.close()


def test_an_interrupt_outlives_the_crash(database):
    store = JobStore(database)
    job = add(store)
    store.take()
    store.ask_to_stop(job)
    store.recover()
    assert store.get(job.id).state == "interrupted"
    store.close()


def test_a_picture_that_was_only_in_memory_is_made_again(database):
    store = JobStore(database)
    job = add(store)
    store.take()
    store.saved(job, image(None, 0))
    store.recover()
    assert store.get(job.id).images == ()
    store.close()


def test_old_finished_jobs_are_forgotten_with_their_pictures_rows_and_unfinished_never(database):
    store = JobStore(database)
    waiting = add(store, 0)
    for number in range(1, 6):
        job = add(store, number)
        store.saved(job, image(database.parent / "x.png"))
        store.finish(job, "done")
    assert sorted(store.prune(keep=2)) == ["job1", "job2", "job3"]
    assert store.get("job4") and store.get(waiting.id)
    assert store._connection.execute("SELECT count(*) FROM images").fetchone()[0] == 2
    store.close()


@pytest.mark.parametrize("damage", ["random", "half", "header"])
def test_a_damaged_file_is_moved_aside_and_said_so(database, damage):
    store = JobStore(database)
    for number in range(40):
        add(store, number)
    store.close()
    data = database.read_bytes()
    broken = {"random": os.urandom(len(data)), "half": data[: len(data) // 2], "header": b"x" * 100 + data[100:]}
    database.write_bytes(broken[damage])

    store = JobStore(database)
    assert "damaged" in store.problems[0]
    (kept,) = [path for path in database.parent.glob("easel.db.corrupt-*") if not path.name.endswith(("-wal", "-shm"))]
    assert kept.read_bytes() == broken[damage]
    add(store)
    store.close()
    store = JobStore(database)
    assert store.problems == [] and store.get("job0")
    store.close()


def test_an_empty_file_is_a_new_database(database):
    database.parent.mkdir()
    database.touch()
    store = JobStore(database)
    assert store.problems == [] and add(store).id == "job0"
    store.close()


def test_a_newer_layout_is_not_touched(database):
    JobStore(database).close()
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = database.read_bytes()
    store = JobStore(database)
    assert "newer version" in store.problems[0] and "in memory only" in store.problems[0]
    assert add(store).id == "job0"
    store.close()
    assert database.read_bytes() == before


def test_a_database_that_another_program_has_locked_leaves_the_server_running(database):
    JobStore(database).close()
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = JobStore(database)
    assert "locked" in store.problems[0]
    assert add(store).id == "job0"
    store.close()
    other.close()


def test_two_servers_do_not_share_a_data_folder(database):
    first = JobStore(database)
    add(first)
    script = "import sys; from pathlib import Path; from modules.jobs.store import JobStore;"
    script += "s = JobStore(Path(sys.argv[1])); print(s.problems[0]); print(s.take())"
    found = subprocess.run([sys.executable, "-c", script, str(database)], capture_output=True, text=True, timeout=60)
    assert "another server uses the data folder" in found.stdout, found.stderr
    assert found.stdout.splitlines()[-1] == "None"
    first.close()


def test_a_thousand_waiting_jobs_are_there_again_in_their_order(database):
    store = JobStore(database)
    with store._transaction():  # one commit, for the test's sake
        for number in range(1000):
            settled = settle(request(seed=number), lambda name: "plain.safetensors")
            store._connection.execute(
                "INSERT INTO jobs (id, state, source, client, request, settings, model, created)"
                " VALUES (?, 'queued', 'page', 'tab', ?, '{}', ?, 0)",
                (f"job{number}", settled.model_dump_json(), '{"name":"x","size":1,"mtime_ns":1,"sha256":null}'),
            )
    store.close()
    store = JobStore(database)
    store.recover()
    assert [id for id, _ in store.waiting()] == [f"job{number}" for number in range(1000)]
    assert store.count_waiting(before=store.get("job500").sequence) == 500
    store.close()


def test_a_request_that_this_version_refuses_blocks_nothing(database):
    store = JobStore(database)
    add(store, 0), add(store, 1)
    with store._transaction() as connection:
        connection.execute("""UPDATE jobs SET request = '{"steps": 100000}' WHERE id = 'job0'""")
    store.recover()
    assert store.take().id == "job1"
    row = store._connection.execute("SELECT state, error FROM jobs WHERE id = 'job0'").fetchone()
    assert row["state"] == "failed" and "another version" in row["error"]
    store.close()
