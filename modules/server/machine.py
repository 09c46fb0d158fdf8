"""What A1111's API tells of the machine: its memory and the flags of the start, without secrets."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from modules.app import App

SECRETS = ("gradio_auth", "gradio_auth_path", "api_auth", "ngrok", "ngrok_options", "tls_keyfile", "tls_certfile")


def add_routes(router: APIRouter, app: App) -> None:
    @router.get("/cmd-flags")
    def cmd_flags() -> dict[str, Any]:
        return visible_flags(app.flags, app.paths.data_dir)

    @router.get("/memory")
    def memory() -> dict[str, Any]:
        return {"ram": main_memory(), "cuda": device_memory()}


def visible_flags(flags: Namespace, data_dir: Path) -> dict[str, Any]:
    """The flags of the start, without passwords and without where this user's folders are."""
    visible = {}
    for name, value in sorted(vars(flags).items()):
        if name in SECRETS:
            value = None
        elif isinstance(value, str) and Path(value).is_absolute():
            path = Path(value)
            value = f"<data-dir>/{path.relative_to(data_dir)}" if path.is_relative_to(data_dir) else path.name
        elif isinstance(value, str) and ("/" in value or "\\" in value):
            value = Path(value).name
        elif not isinstance(value, str | int | float | bool | list | dict | None):
            value = str(value)
        visible[name] = value
    return visible


def main_memory() -> dict[str, Any]:
    """Bytes, as A1111 counts: `used` is this process."""
    try:
        meminfo = Path("/proc/meminfo").read_text("ascii")
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return {"error": "unavailable on this system"}
    total = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    used = pages * 4096
    return {"free": total - used, "used": used, "total": total}


def device_memory() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # the worker has it once it has begun; this thread must not import it
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_available():
        return {"error": "unavailable"}
    free, total = cuda.mem_get_info()
    stats = cuda.memory_stats()

    def pair(name: str) -> dict[str, int]:
        return {"current": stats[f"{name}.all.current"], "peak": stats[f"{name}.all.peak"]}

    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": pair("active_bytes"),
        "allocated": pair("allocated_bytes"),
        "reserved": pair("reserved_bytes"),
        "inactive": pair("inactive_split_bytes"),
        "events": {"retries": stats["num_alloc_retries"], "oom": stats["num_ooms"]},
    }
