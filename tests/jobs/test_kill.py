"""The real server with the starter checkpoint, killed in the middle of its work: nothing is lost, nothing is made
twice."""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "models" / "Stable-diffusion" / "starter.safetensors"
PATIENCE_S = 120
JOBS = (
    {"prompt": "red apple", "seed": 100, "batch_count": 4, "steps": 40},
    {"prompt": "pizza", "seed": 200, "batch_size": 2, "steps": 4, "sampler": "Euler a"},
    {"prompt": "cat face", "seed": 300, "steps": 4},
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STARTER.exists(), reason="the starter checkpoint is not there"),
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL"),
]


class Server:
    """webui.py as launch.py runs it, without the page."""

    started: list[subprocess.Popen[bytes]] = []

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = (folder / "server.log").open("ab")
        command = [
            sys.executable,
            "webui.py",
            "--nowebui",
            "--no-half",
            "--data-dir",
            str(folder),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log)
        self.started.append(self.process)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S, trust_env=False)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.http.get("/health")
                return
            except httpx.TransportError:
                assert self.process.poll() is None, "the server ended; see server.log"
                assert time.monotonic() < deadline
                time.sleep(0.02)  # there is nothing else to wait on before the port is open

    @contextmanager
    def events(self, job: str) -> Iterator[Iterator[dict]]:
        with self.http.stream("GET", f"/api/v1/jobs/{job}/events") as stream:
            yield (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))

    def wait_for(self, job: str, **fields: object) -> dict:
        """The first event of the job that has these fields."""
        with self.events(job) as events:
            return next(event for event in events if all(event.get(key) == value for key, value in fields.items()))

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE_S)
        self.http.close()
        self.log.close()
        return code


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in Server.started:  # a failed test leaves no server behind
        if process.poll() is None:
            process.kill()
            process.wait()
    log = tmp_path / "server.log"
    print(log.read_text("utf-8", "replace")[-4000:] if log.exists() else "")


def submit(server: Server, job: dict) -> str:
    body = {"width": 128, "height": 128, **job}
    answer = server.http.post("/api/v1/jobs", json=body, headers={"idempotency-key": str(job["seed"])})
    assert answer.status_code == 202
    return answer.json()["id"]


def rows(folder: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(f"file:{folder / 'data' / 'easel.db'}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT sequence, state FROM jobs ORDER BY sequence").fetchall()
    connection.close()
    return found


def test_a_server_that_is_killed_again_and_again_ends_every_job_exactly_once(folder):
    server = Server(folder)
    ids = [submit(server, job) for job in JOBS]
    server.wait_for(ids[0], type="progress", phase="sampling", batch=0)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL

    server = Server(folder)
    assert [submit(server, job) for job in JOBS] == ids  # a client that is not sure asks again
    first = server.wait_for(ids[0], type="image", index=1)
    server.end(signal.SIGKILL)
    kept = (folder / first["path"]).read_bytes()

    server = Server(folder)
    server.wait_for(ids[0], type="progress", phase="sampling", batch=3)
    server.end(signal.SIGKILL)

    server = Server(folder)
    for id in ids:
        assert server.wait_for(id, type="job", position=None)["state"] == "done"
    jobs = [server.http.get(f"/api/v1/jobs/{id}").json() for id in ids]
    pictures = [server.http.get(image["url"]).content for job in jobs for image in job["images"]]
    assert server.end(signal.SIGTERM) == 0

    images = [image for job in jobs for image in job["images"]]
    assert [image["seed"] for image in images] == [100, 101, 102, 103, 200, 201, 300]
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / "outputs").rglob("*") if path.is_file())
    assert [file for file in files if file.endswith(".png")] == sorted(image["path"] for image in images)
    assert len({image["path"] for image in images}) == len(images)
    for image, served in zip(images, pictures, strict=True):
        path = folder / image["path"]
        assert path.read_bytes() == served
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["parameters"] == image["infotext"] and f"Seed: {image['seed']}," in image["infotext"]
    assert (folder / first["path"]).read_bytes() == kept
    assert [state for _, state in rows(folder)] == ["done"] * 3


def test_what_was_made_after_a_kill_is_what_would_have_been_made_without(folder):
    server = Server(folder)
    job = {"prompt": "sailboat", "seed": 7, "batch_count": 2, "steps": 4}
    id = submit(server, job)
    server.wait_for(id, type="image", index=0)
    server.end(signal.SIGKILL)
    server = Server(folder)
    server.wait_for(id, type="job", position=None)
    again = submit(server, {**job, "seed": 8, "batch_count": 1})
    server.wait_for(again, type="job", position=None)
    resumed = server.http.get(f"/api/v1/jobs/{id}/images/1").content
    alone = server.http.get(f"/api/v1/jobs/{again}/images/0").content
    server.end(signal.SIGTERM)
    assert resumed == alone


def test_a_server_that_is_asked_to_end_puts_its_job_back_and_leaves(folder):
    server = Server(folder)
    ids = [submit(server, {**JOBS[0], "steps": 100}), submit(server, JOBS[2])]
    server.wait_for(ids[0], type="progress", phase="sampling", batch=0)
    assert server.end(signal.SIGTERM) == 0
    assert [state for _, state in rows(folder)] == ["queued", "queued"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    assert not [path for path in (folder / "outputs").rglob("*") if path.is_file()]


def test_a_thousand_waiting_jobs_do_not_delay_the_start(folder):
    server = Server(folder)
    id = submit(server, {**JOBS[0], "steps": 100, "batch_count": 50})
    server.end(signal.SIGKILL)
    with sqlite3.connect(folder / "data" / "easel.db") as connection:
        connection.executemany(
            "INSERT INTO jobs (id, state, source, client, request, settings, model, created)"
            " SELECT ?, 'queued', source, client, request, settings, model, created FROM jobs WHERE id = ?",
            [(f"copy{number}", id) for number in range(1000)],
        )
    connection.close()
    server = Server(folder)
    assert server.http.get("/api/v1/status").json()["waiting"] >= 1000
    assert server.http.get("/api/v1/jobs/copy999").json()["position"] in (1000, 1001)  # the first may run already
    server.end(signal.SIGKILL)
