"""A real server, once a session, in a folder of its own; and pages of a real Chromium in front of it.

Every page is watched while a test uses it: a request to anywhere but our server, an error in its console or script
smuggled in through text fails the test, whatever it was about."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "models" / "Stable-diffusion" / "starter.safetensors"
TINY = ROOT.parent / "shared" / "golden" / "models" / "tiny-sd1.safetensors"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
START_S = 180.0  # these are only ever reached by a test that fails, or on a very busy machine
WAIT_MS = 90_000


@dataclass(frozen=True)
class Server:
    url: str
    data_dir: Path
    checkpoint: str  # its name without the ending


@pytest.fixture(scope="session")
def checkpoint_flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How a server is told of the checkpoint that the tests use."""
    if STARTER.exists():
        return []
    if not TINY.exists():
        pytest.skip("no checkpoint to make pictures with: neither the starter nor the tiny one of shared/golden")
    folder = tmp_path_factory.mktemp("checkpoints")
    for file in (TINY, TINY.with_suffix(".yaml")):
        (folder / file.name).symlink_to(file)
    return ["--ckpt-dir", str(folder)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint_flags: list[str]) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("data")
    with running(data_dir, free_port(), checkpoint_flags) as (url, _):
        yield Server(url, data_dir, TINY.stem if checkpoint_flags else STARTER.stem)


@contextmanager
def running(data_dir: Path, port: int, flags: list[str]) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server that answers; ended at the end, if it still runs."""
    url = f"http://127.0.0.1:{port}"
    log = data_dir / "server.log"
    command = [sys.executable, "webui.py", "--port", str(port), "--data-dir", str(data_dir), *flags]
    with log.open("a") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_for(url, process, log)
            yield url, process
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail(f"the server did not answer within {START_S:.0f} s:\n{log.read_text()[-3000:]}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What pages of one test did that they must not do."""

    origin: str
    faults: list[str]

    def follow(self, page: Any) -> None:
        page.on("request", lambda request: self.note_request(request.url))
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.on("console", self.note_console)

    def note_request(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.faults.append(f"request to elsewhere: {url}")

    def note_console(self, message: Any) -> None:
        refused = any(f"status of {one}" in message.text for one in (409, 422))  # what the page tells in words
        of_picture = "/api/v1/jobs/" in message.location["url"]  # Chromium's own frame around a picture in a tab
        if message.type == "error" and not refused and not of_picture:
            self.faults.append(f"console: {message.text}")


@pytest.fixture
def new_context(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Makes browser contexts (own storage each), in English and light unless a test says otherwise."""
    watch = Watch(server.url, [])
    contexts = []

    def make(width: int = 1440, height: int = 900, **more: Any) -> Any:
        options = {"locale": "en-US", "color_scheme": "light", "base_url": server.url} | more
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(WAIT_MS)
        context.on("page", watch.follow)
        contexts.append(context)
        return context

    yield make
    marks = [page.evaluate("window.__xss") for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert watch.faults == []
    assert not any(marks)


@pytest.fixture
def new_page(new_context: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *size, **more: opened(new_context(*size, **more).new_page())


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    return new_page()


def opened(page: Any) -> Any:
    page.goto("/")
    return ready(page)


def ready(page: Any) -> Any:
    page.set_default_timeout(WAIT_MS)
    page.wait_for_selector("html[data-ready]")
    return page
