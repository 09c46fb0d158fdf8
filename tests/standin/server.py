"""Stands in for webui.py where launch.py is tested: a process that listens, crashes, or will not end.

Its first argument says which, its second names a folder for what it leaves behind.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

how, folder = sys.argv[1], Path(sys.argv[2])
starts = len(list(folder.glob("start-*")))
(folder / f"start-{starts}-{os.getpid()}").touch()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"start {starts}".encode())
        if self.path == "/crash":
            self.wfile.flush()
            os._exit(3)

    def log_message(self, *_: object) -> None:
        pass


if how == "refuses":
    sys.exit(2)
if how == "ends":
    sys.exit(0)
if how == "crashes" or (how == "crashes-once" and starts == 0):
    os.kill(os.getpid(), signal.SIGSEGV)
if how == "will-not-end":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(999)"]
    )
    (folder / f"child-{child.pid}").touch()
if how == "slow":
    time.sleep(1)

server = HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(os.environ["EASEL_SOCKET"]))
server.handle_error = lambda *_: None  # launch.py hangs up as soon as it has its answer
server.serve_forever()
