"""A real uvicorn around an ASGI app, for tests that speak HTTP."""

import socket
import threading

import httpx
import uvicorn

from modules.app import App
from modules.server.gate import ASGIApp
from tests.jobs.scene import PATIENCE_S


class Served:
    """A real uvicorn on a free port; `http` speaks to it as a program on this machine does."""

    def __init__(self, asgi: ASGIApp, app: App | None = None):
        self.app = app
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._started = threading.Event()
        config = uvicorn.Config(asgi, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        startup = self._server.startup

        async def started(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            self._started.set()

        self._server.startup = started  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        assert self._started.wait(PATIENCE_S)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S, trust_env=False)

    def close(self) -> None:
        self.http.close()
        if self.app:
            assert self.app.stop(PATIENCE_S)
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
