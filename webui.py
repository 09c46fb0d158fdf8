"""The server: the only place that builds Easel's parts and puts them together. `launch.py` starts it and keeps it alive.

The port is open from the first moment. The page is built and served first; torch and the model are loaded by the worker's
thread while the page already answers.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import asyncio
import logging
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

import uvicorn

from modules.app import App
from modules.runtime import imports, listening, logs
from modules.runtime.flags import host_of, parse
from modules.runtime.paths import paths_from
from modules.server.api import create_api
from modules.server.gate import Gate

log = logging.getLogger("easel")

GRACE_S = 1  # for answers that are under way when the server ends
STEP_S = 2.0  # for the worker's present step; a longer one is made again at the next start


def main(argv: Sequence[str]) -> int:
    flags = parse(argv)
    try:
        listener = listening.inherited_listener(os.environ) or listening.open_listener(flags)
        token = listening.token_from(flags, os.environ)
        passwords = listening.passwords_from(flags)
    except (listening.ListenError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    logs.set_up(flags.loglevel or "INFO", secrets=[token or "", *passwords.values()])
    with imports.no_collections():
        app = App(paths_from(flags), flags)
        gate = Gate(build(app, flags), frozenset({host_of(flags)}), token, passwords)
    for problem in app.problems:
        log.warning("%s", problem)
    if os.environ.get(listening.SOCKET_VARIABLE) is None:
        log.info("Easel answers at %s", listening.with_token(listening.address_of(listener, flags), token))
    Server(configured(gate, flags), app.start, app.events.close).run([listener])
    app.stop(STEP_S)
    logging.shutdown()
    os._exit(0)  # the worker may still be inside one long step, which ordinary exit would wait for


def build(app: App, flags: Namespace):  # type: ignore[no-untyped-def]  # FastAPI, which only the server knows
    """The routes, and the page unless there is to be none."""
    api = create_api(app)
    if not flags.nowebui:
        imports.skip_gradio_stub_files()
        from modules.web.page import mount_page

        mount_page(api, app)
    return api


def configured(gate: Gate, flags: Namespace) -> uvicorn.Config:
    return uvicorn.Config(
        gate,
        log_config=None,
        access_log=bool(flags.api_log),
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=flags.timeout_keep_alive or 30,
        ssl_keyfile=flags.tls_keyfile,
        ssl_certfile=flags.tls_certfile,
    )


class Server(uvicorn.Server):
    """Tells when it answers, and when it is about to end."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None]):
        super().__init__(config)
        self._on_start, self._on_end = on_start, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A moment later: whoever waits for the page gets it before torch's import takes the interpreter.
        asyncio.get_running_loop().call_later(0.05, self._on_start)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_end()  # event streams never end by themselves
        await super().shutdown(sockets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
