"""What is asked of somebody who reports a fault: versions, machine, device, what was changed from the defaults, what
went wrong lately. Made to be pasted into public places: no path, no name of a person or machine, no secret."""

import datetime
import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter, Response

from modules.app import App, LoadedModel
from modules.runtime.flags import FLAGS, HARMLESS, described
from modules.runtime.machine import DeviceFacts, this_machine, versions
from modules.runtime.paths import Paths, absolute
from modules.runtime.private import HIDDEN, SECRET_NAME, Scrubber
from modules.server.machine import device_memory
from modules.settings.schema import SETTINGS, Settings

MOST_PROBLEMS = 20
MOST_OF_A_PROBLEM = 2000  # characters


@dataclass(frozen=True)
class Known:
    """What the report is made of."""

    flags: Namespace
    paths: Paths
    settings: Settings
    device: DeviceFacts | None = None  # None: torch has not started yet
    loaded: LoadedModel | None = None
    status: str = ""  # of the model, for people
    problems: Sequence[str] = ()
    plan: Mapping[str, object] = field(default_factory=dict)  # how the last run was fitted into memory


def add_routes(router: APIRouter, app: App) -> None:
    @router.get("/sysinfo")
    def sysinfo(attachment: str = "") -> Response:
        return _answer(app, attachment not in ("", "0", "false", "False"))

    @router.get("/sysinfo-download")
    def sysinfo_download() -> Response:
        return _answer(app, True)


def _answer(app: App, as_file: bool) -> Response:
    headers = {"cache-control": "no-store"}
    if as_file:
        headers["content-disposition"] = f'attachment; filename="{file_name()}"'
    return Response(as_text(system_info(known_of(app))), media_type="application/json", headers=headers)


def known_of(app: App) -> Known:
    recent = app.recent_problems()
    said = [one for one in app.problems if not any(one in line for line in recent)]
    failed = [f"job failed: {error}" for error in app.store.failures(MOST_PROBLEMS)]
    status = f"{app.model_status.state}: {app.model_status.text}"
    problems = [*said, *failed, *recent]
    settings, plan = app.settings.current, app.memory_plan()
    return Known(app.flags, app.paths, settings, app.device, app.loaded, status, problems, plan)


def file_name() -> str:
    return f"sysinfo-{datetime.datetime.now():%Y-%m-%d-%H-%M}.json"


def as_text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def system_info(known: Known) -> dict[str, Any]:
    machine, device = this_machine(), known.device
    scrubbed = scrubber_for(known)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": machine.system,
        "processor": {
            "name": machine.processor,
            "cores": machine.cores,
            "features": list(device.processor_features) if device else [],
        },
        "memory": {  # bytes
            "total": machine.memory,
            "free": machine.memory_free,
            "easel": psutil.Process().memory_info().rss,
        },
        "device": _device(device),
        "memory_plan": dict(known.plan) or None,  # of the last run: level, and bytes needed, available, free, total
        "model": scrubbed(known.status),
        "checkpoint": asdict(known.loaded) if known.loaded else None,
        "flags": described(known.flags),
        "settings": changed(known.settings),
        "problems": [scrubbed(problem)[:MOST_OF_A_PROBLEM] for problem in known.problems[-MOST_PROBLEMS:]],
    }


def _device(device: DeviceFacts | None) -> dict[str, Any] | None:
    if device is None:
        return None
    facts = asdict(device)
    del facts["processor_features"]
    memory = device_memory()
    return facts | {"memory": memory["system"] if "system" in memory else None}


def changed(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults; of texts that the user wrote, only that they do."""
    found = {}
    for key, info in SETTINGS.items():
        value = getattr(settings, key)
        if value != info.default:
            told = not info.path and (info.type in ("bool", "int", "float") or info.choices is not None)
            found[key] = value if told else HIDDEN
    return found


def scrubber_for(known: Known) -> Scrubber:
    """Hides what this user has written into flags and settings too, wherever a message quotes it."""
    paths = known.paths
    folders = {paths.data_dir: "<data>", paths.models_dir: "<models>", paths.root: "<easel>"}
    secrets: set[str] = set()
    for flag in FLAGS:
        value: Any = getattr(known.flags, flag.dest, flag.default)
        if value == flag.default or flag.choices or flag.name in HARMLESS:
            continue
        if flag.kind == "text":
            secrets |= {str(value), *str(value).replace(",", ":").split(":")}
        elif flag.kind in ("path", "texts"):
            words = [value] if isinstance(value, str) else value
            folders = {**{absolute(word): HIDDEN for word in words}, **folders}
    for key, info in SETTINGS.items():
        value = getattr(known.settings, key)
        written = value if isinstance(value, list) else [str(value)]
        if info.path:
            folders = {**{Path(word): HIDDEN for word in written if Path(word).is_absolute()}, **folders}
        elif info.secret or (info.type == "str" and SECRET_NAME.search(key)):
            secrets |= set(written)
    return Scrubber(folders, secrets, os.environ)
