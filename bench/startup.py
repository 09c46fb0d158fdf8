"""How long from `python launch.py` to the page, to the loaded starter, to the first picture. `python bench/startup.py`

Starts the real thing (launch.py --skip-install --no-venv, so with the Python that runs this) on a free port with an
empty data folder, several times; the first start of a fresh machine is the cold one. Medians; --each prints all.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURE = {"prompt": "red apple", "width": 128, "height": 128, "steps": 20, "sampler_name": "DPM++ 2M", "seed": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=20, help="for pictures per minute")
    parser.add_argument("--each", action="store_true")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as data:
        for number in range(arguments.starts):
            last = number == arguments.starts - 1
            runs.append(start(data, arguments.pictures if last else 0))
            if arguments.each:
                print(json.dumps(runs[-1]))
    for key in ("port_s", "page_s", "model_s", "picture_s", "cpu_s"):
        print(f"{key:12}{statistics.median(run[key] for run in runs):8.2f}")
    print(
        f"{'pictures/min':12}{runs[-1]['per_minute']:8.1f}   128 x 128, 20 steps of DPM++ 2M, CFG 7, over the HTTP API"
    )


def start(data: str, pictures: int) -> dict[str, Any]:
    """Seconds since the command was given; cpu_s: what the server had used when the model was loaded."""
    port = free_port()
    command = [sys.executable, str(ROOT / "launch.py"), "--skip-install", "--no-venv", "--no-browser"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port), "--data-dir", data], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        found: dict[str, Any] = {}
        wait(lambda: socket.create_connection(("127.0.0.1", port), 30).close())
        found["port_s"] = time.perf_counter() - began
        wait(lambda: fetch(f"{address}/"))
        found["page_s"] = time.perf_counter() - began
        wait(lambda: loaded(address))
        found["model_s"] = time.perf_counter() - began
        found["cpu_s"] = cpu_seconds(process.pid)
        fetch(f"{address}/sdapi/v1/txt2img", PICTURE)
        found["picture_s"] = time.perf_counter() - began
        if pictures:
            fetch(f"{address}/sdapi/v1/txt2img", PICTURE)
            since = time.perf_counter()
            for seed in range(pictures):
                fetch(f"{address}/sdapi/v1/txt2img", PICTURE | {"seed": seed})
            found["per_minute"] = 60 * pictures / (time.perf_counter() - since)
        return found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def wait(attempt: Any, limit_s: float = 120) -> None:
    until = time.perf_counter() + limit_s
    while True:
        try:
            if attempt() is not False:
                return
        except OSError:
            if time.perf_counter() > until:
                raise
        time.sleep(0.02)


def loaded(address: str) -> bool:
    return bool(json.loads(fetch(f"{address}/api/v1/status"))["model"]["state"] == "ready")


def fetch(url: str, body: dict[str, Any] | None = None) -> bytes:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=120) as answer:
        content: bytes = answer.read()
        return content


def cpu_seconds(launcher: int) -> float:
    """Of all processes below the launcher, where /proc tells; else 0."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == launcher:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
