"""The server: the only place that builds Easel's parts and puts them together. `launch.py` starts it and keeps it up.

The port is open from the first moment. The page is built and served first; torch and the model are loaded by the
worker's thread while the page already answers.
"""

import os

from modules.runtime.surroundings import surroundings

os.environ.update(surroundings(os.environ))

import asyncio
import logging
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from modules.app import App
from modules.runtime import imports, listening, logs
from modules.runtime.flags import FlagError, host_of, parse, words
from modules.runtime.paths import PathError, Paths, paths_from
from modules.server.api import create_api
from modules.server.gate import Gate
from modules.server.system_info import Known, as_text, file_name, system_info
from modules.settings.store import SettingsStore

log = logging.getLogger("easel")

GRACE_S = 1  # for answers that are under way when the server ends
STEP_S = 2.0  # for the worker's present step; a longer one is made again at the next start
LAST_S = 4  # from the signal: after that the system ends us, whatever we are stuck in
BAD_COMMAND_LINE, INTERRUPTED = 2, 130


def main(argv: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    try:
        flags = parse(words(argv, os.environ))
        paths = paths_from(flags)
        if flags.dump_sysinfo:
            return dump_system_info(flags, paths)
        passwords = listening.passwords_from(flags)
        token = listening.token_from(flags, os.environ)
        listener = listening.inherited_listener(os.environ) or listening.open_listener(flags)
    except (FlagError, PathError, listening.ListenError) as error:
        print(f"easel: {error}", file=sys.stderr)
        return BAD_COMMAND_LINE
    recent = logs.set_up(flags.loglevel, secrets=[token or "", *passwords.values()])
    with imports.no_collections():
        app = App(paths, flags, recent_problems=recent.problems)
        gate = Gate(build(app, flags), frozenset({host_of(flags), socket.gethostname()}), token, passwords)
    for problem in app.file_problems:
        log.warning("%s", problem)
    if listening.SOCKET_VARIABLE not in os.environ:  # else launch.py says it
        log.info("Easel answers at %s", listening.address_of(listener, flags))
        if token and not os.environ.get(listening.TOKEN_VARIABLE):
            print(listening.with_token(listening.address_of(listener, flags), token), file=sys.stderr)
    server = Server(configured(gate, flags), app.start, app.events.close)
    asyncio.new_event_loop().run_until_complete(server.serve([listener]))
    app.stop(STEP_S)
    return INTERRUPTED if server.ended_by == signal.SIGINT else 0


def build(app: App, flags: Namespace):  # type: ignore[no-untyped-def]  # FastAPI, which only the server knows
    """The routes, and the page unless there is to be none."""
    api = create_api(app)
    if not flags.nowebui:
        imports.skip_gradio_stub_files()
        from modules.web.page import mount_page

        mount_page(api, app)
    return api


def dump_system_info(flags: Namespace, paths: Paths) -> int:
    """Writes what /internal/sysinfo tells into the data folder, and serves nothing: a server may run beside."""
    recent = logs.set_up(flags.loglevel)
    settings = SettingsStore(paths.config)
    try:
        from modules.runtime.device import placement_from
        from modules.runtime.torch_facts import device_facts

        device = device_facts(placement_from(flags), settings.current.cross_attention_optimization)
    except Exception:  # a broken installation is what the report is for
        log.exception("torch could not tell of the device")
        device = None
    report = system_info(Known(flags, paths, settings.current, device, problems=recent.problems()))
    file = paths.data_dir / file_name()
    file.write_text(as_text(report), "utf-8")
    print(f"The system information is in {file}; it names no folder, person or secret.")
    return 0


def configured(gate: Gate, flags: Namespace) -> uvicorn.Config:
    return uvicorn.Config(
        gate,
        loop="asyncio",
        http="h11",
        ws="none",
        log_config=None,
        access_log=flags.api_log,
        log_level="info" if flags.api_log else "warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=flags.timeout_keep_alive,
        ssl_keyfile=flags.tls_keyfile,
        ssl_certfile=flags.tls_certfile,
    )


class Server(uvicorn.Server):
    """Tells when it answers, and when it is about to end."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None]):
        super().__init__(config)
        self._on_start, self._on_end = on_start, on_end
        self.ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A moment later: whoever waits for the page gets it before torch's import takes the interpreter.
        asyncio.get_running_loop().call_later(0.05, self._on_start)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_end()  # event streams never end by themselves
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again when it is through, and end us before the worker is."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        yield

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ended_by = number
        if hasattr(signal, "alarm"):
            signal.alarm(LAST_S)
        self.handle_exit(number, frame)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # the worker may still be inside one long step, which ordinary exit would wait for
