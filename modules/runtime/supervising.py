"""Keeping the server alive: start it, wait until it answers, start it again after a crash, end it and all its children.

Standard library only; knows nothing of what the server does. The listening socket belongs to the supervisor and is
handed down, so that the port stays ours, and visitors wait, while a crashed server comes back.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar
from urllib.parse import urlsplit

from modules.runtime.listening import SOCKET_VARIABLE

GRACE_S = 3.5  # from the request to end to the kill; all is over within 5 s
CRASHES = 3  # this many within CRASH_WINDOW_S are one too many
CRASH_WINDOW_S = 60.0
BAD_COMMAND_LINE = 2  # a server that exits with this has said why, and would say it again

Say = Callable[[str], None]
Text = TypeVar("Text", str, bytes)


class Terminated(BaseException):
    """SIGTERM or a closed terminal asked us to end; raised out of whatever was running, like KeyboardInterrupt."""


@dataclass(frozen=True)
class Server:
    """What to run: the command, its environment, the page's address on this machine, and its listening socket."""

    command: Sequence[str]
    environ: Mapping[str, str]
    address: str  # e.g. http://127.0.0.1:7860
    listener: socket.socket | None  # None where sockets cannot be handed down (Windows): the server opens its own
    certificate: str | None = None  # PEM of an https server


def supervise(server: Server, on_ready: Callable[[], None], say: Say) -> int:
    """Runs the server until it ends by itself or crashes too often; returns the exit code to end with.

    `on_ready` is called once, when the page answers for the first time. KeyboardInterrupt and `Terminated` pass
    through after every process of the server is gone.
    """
    crashes: deque[float] = deque(maxlen=CRASHES)
    ready = False
    while True:
        with running(server) as process:
            if _wait_until_it_answers(server, process) and not ready:
                ready = True
                on_ready()
            code = _wait(process)
        if code in (0, BAD_COMMAND_LINE):
            return code
        crashes.append(time.monotonic())
        said = _end_in_words(code)
        if len(crashes) == CRASHES and crashes[-1] - crashes[0] < CRASH_WINDOW_S:
            say(f"The server {said}, for the third time within a minute. Easel stops here; the lines above say why.")
            return 1
        pause = 2.0 ** (sum(crashes[-1] - crash < CRASH_WINDOW_S for crash in crashes) - 1)
        say(f"The server {said}. It starts again in {pause:.0f} s; queued pictures are kept.")
        time.sleep(pause)


@contextlib.contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, in a process group of its own; on leaving, the group is gone."""
    with ended(_start(server)) as process:
        yield process


@contextlib.contextmanager
def ended(process: subprocess.Popen[Text]) -> Iterator[subprocess.Popen[Text]]:
    """On leaving, this process is gone, and with it the group that it leads (`start_new_session`)."""
    try:
        yield process
    finally:
        _end(process)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated` as Ctrl-C raises KeyboardInterrupt, so that one `finally` serves all."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    names = ("SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, terminate) for number in numbers}
    # A shell that starts us in the background lets us ignore Ctrl-C; a supervisor that sends SIGINT means it.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(server: Server) -> subprocess.Popen[bytes]:
    environ = dict(server.environ)
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(server.command, env=environ, stdin=subprocess.DEVNULL, creationflags=flags)
    handed_down: tuple[int, ...] = ()
    if server.listener is not None:
        handed_down = (server.listener.fileno(),)
        environ[SOCKET_VARIABLE] = str(server.listener.fileno())
    return subprocess.Popen(
        server.command,
        env=environ,
        stdin=subprocess.DEVNULL,
        pass_fds=handed_down,
        start_new_session=True,  # Ctrl-C reaches only us, and we end the whole group in order
        preexec_fn=_die_with_parent(),
    )


def _die_with_parent() -> Callable[[], None] | None:
    """Linux ends the server when we are killed with SIGKILL and cannot; elsewhere there is no such call."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # found before the fork: nothing may be imported after it
    set_parent_death_signal, parent = 1, os.getpid()

    def after_fork() -> None:
        prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return after_fork


def _end(process: subprocess.Popen[Text]) -> None:
    """Asks the server to end, waits `GRACE_S`, then kills what is left of its group. A second Ctrl-C kills at once."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, Terminated):
        pass
    finally:
        if sys.platform == "win32":
            process.kill()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty already
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def _wait(process: subprocess.Popen[bytes]) -> int:
    if sys.platform != "win32":
        return process.wait()
    while True:  # Windows would not let Ctrl-C through during an endless wait
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)


def _wait_until_it_answers(server: Server, process: subprocess.Popen[bytes]) -> bool:
    """True when the page has answered a request with anything at all; False when the server ended before."""
    while process.poll() is None:
        try:
            with _connected(server) as connection:
                return _answers(connection, process)
        except OSError:
            time.sleep(0.05)  # it has not opened its port yet, or hung up on us
    return False


def _connected(server: Server) -> socket.socket:
    where = urlsplit(server.address)
    assert where.hostname is not None
    connection = socket.create_connection((where.hostname, where.port or 80), timeout=5)
    try:
        if server.certificate:
            context = ssl.create_default_context(cafile=server.certificate)
            context.check_hostname = False  # it is ourselves, by address
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            connection.settimeout(60)
            connection = context.wrap_socket(connection)
        request = f"GET / HTTP/1.1\r\nHost: {where.netloc}\r\nUser-Agent: Easel start\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode("ascii"))
        return connection
    except BaseException:
        connection.close()
        raise


def _answers(connection: socket.socket, process: subprocess.Popen[bytes]) -> bool:
    """Waits on one open request: the connection lies in the socket's backlog until the server takes it."""
    while process.poll() is None:
        if select.select([connection], [], [], 0.05)[0]:
            if connection.recv(12).startswith(b"HTTP/"):
                return True
            raise ConnectionError("it hung up before it answered")
    return False


def _end_in_words(code: int) -> str:
    if code >= 0:
        return f"crashed (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"crashed ({name}{', most likely out of memory' if name == 'SIGKILL' else ''})"
