"""Set-up: which Python runs the program, and getting the pinned packages into it. Standard library and pip only.

Two cases. In our own `venv/` every version is ours to choose, and a stamp remembers what was installed. In a Python
that is someone else's (an active venv, Colab, Kaggle, `--no-venv`) only what is missing comes in, and its torch stays.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.runtime.supervising import ended

STAMP = "easel.json"  # in the venv: what was installed there, to the end
OLDEST_TORCH = (2, 10)
REQUIREMENTS = "requirements.txt"
DEV_REQUIREMENTS = "requirements-dev.txt"
CONSTRAINTS = "constraints.txt"

Say = Callable[[str], None]


class SetupError(Exception):
    """Set-up that cannot go on; the message says what was wrong and what to do."""


@dataclass(frozen=True)
class Environment:
    """The Python that runs the program."""

    python: Path
    ours: Path | None  # our venv's folder, or None where the environment belongs to someone else
    reason: str = ""  # why it is not our venv


def environment_for(root: Path, no_venv: bool, environ: Mapping[str, str]) -> Environment:
    """Our `venv/`, unless a venv is active, a notebook service runs us, or the user said `--no-venv`."""
    venv = root / "venv"
    here = Path(sys.executable)
    in_a_venv = sys.prefix != sys.base_prefix
    if in_a_venv and venv.exists() and os.path.samefile(sys.prefix, venv):
        return Environment(here, venv)
    if no_venv:
        return Environment(here, None, "--no-venv")
    if in_a_venv:
        return Environment(here, None, f"the active environment {sys.prefix}")
    if "COLAB_RELEASE_TAG" in environ:
        return Environment(here, None, "Colab")
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return Environment(here, None, "Kaggle")
    return Environment(venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"), venv)


def install(root: Path, environment: Environment, files: Sequence[str], say: Say, again: Sequence[str] = ()) -> None:
    """Brings the packages of `files` into the environment; at once where nothing is to do. `again`: reinstall these."""
    if environment.ours is None:
        _install_beside(root, environment, files, say, again)
        return
    wanted = {name: _digest(root, name) for name in files}
    stamp = _read_stamp(environment)
    if not again and stamp is not None and all(stamp.get(name) == digest for name, digest in wanted.items()):
        return
    if stamp is None:
        _make_venv(environment, say)
        stamp = {}
    say("Installing what Easel needs. This happens once and takes some minutes; torch is the largest part.")
    # Until pip has finished, this venv counts as empty: an interrupted set-up is repeated.
    (environment.ours / STAMP).unlink(missing_ok=True)
    files_in_use = sorted({*files, *(name for name in (REQUIREMENTS, DEV_REQUIREMENTS) if name in stamp)}, reverse=True)
    arguments = [part for name in files_in_use for part in ("-r", str(root / name))]
    if again:
        _pip(environment, ["install", "--force-reinstall", "--no-deps", *again], say)
    _pip(environment, ["install", *arguments, "-c", str(root / CONSTRAINTS)], say)
    python = _version_of(environment) or _python_version()
    _write_stamp(environment, {"python": python, **{name: _digest(root, name) for name in files_in_use}})
    say("Set-up is complete.")


def run_pip(root: Path, environment: Environment, command: str, what: str, say: Say) -> None:
    """pip for an extension, e.g. `install pandas`. It may add packages, never change one that the program stands on."""
    with tempfile.TemporaryDirectory(prefix="easel-") as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(_pins(root)), encoding="utf-8")
        say(f"Installing {what}")
        _pip(
            environment, [*shlex.split(command, posix=sys.platform != "win32"), "--prefer-binary", "-c", str(pins)], say
        )


def is_installed(name: str) -> bool:
    """Whether the running Python has this package, by the name that pip or `import` knows it by."""
    try:
        importlib.metadata.distribution(name)
        return True
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None


def requirement_lines(root: Path, name: str) -> list[str]:
    """The lines of a requirements file that hold for the running Python, without comments and markers."""
    found = []
    for raw in (root / name).read_text(encoding="utf-8").splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if not marker or _holds(marker):
            found.append(requirement)
    return found


# -- our own venv ------------------------------------------------------------------------------------------------------


def _digest(root: Path, name: str) -> str:
    """Of a requirements file, the constraints it is installed with, and where torch is to come from."""
    digest = hashlib.sha256()
    for file in (name, CONSTRAINTS):
        digest.update((root / file).read_bytes())
    digest.update(os.environ.get("TORCH_INDEX_URL", "").encode())
    return digest.hexdigest()


def _read_stamp(environment: Environment) -> dict[str, str] | None:
    """What was installed; None where the venv is missing, unfinished, or was made by another Python."""
    assert environment.ours is not None
    try:
        stamp = json.loads((environment.ours / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or not environment.python.exists():
        return None
    # A venv made by another Python than the one that runs launch.py today is as good, if it still is what it was.
    ours = stamp.get("python")
    return stamp if ours == _python_version() or ours == _version_of(environment) else None


def _write_stamp(environment: Environment, stamp: Mapping[str, str]) -> None:
    assert environment.ours is not None
    unfinished = environment.ours / f"{STAMP}.part"
    unfinished.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    unfinished.replace(environment.ours / STAMP)


def _make_venv(environment: Environment, say: Say) -> None:
    venv = environment.ours
    assert venv is not None
    if _version_of(environment) == _python_version():
        return  # an interrupted set-up: what pip has already brought is used
    if Path(sys.prefix) == venv.resolve():
        raise SetupError(f"{venv} is damaged, and cannot repair itself: run launch.py with the system's Python")
    say(f"Making a Python environment in {venv}")
    if venv.exists():
        shutil.rmtree(venv)
    command = [sys.executable, "-m", "venv", str(venv)]
    with ended(_start(command, os.environ, subprocess.PIPE, subprocess.STDOUT)) as making:
        words = making.communicate()[0].strip()
    if making.returncode == 0:
        return
    if "ensurepip" in words or "No module named venv" in words:
        raise SetupError(
            "this Python cannot make virtual environments. On Debian and Ubuntu: `sudo apt install python3-venv`; "
            "or start with --no-venv to install into the running Python"
        )
    raise SetupError(f"the environment {venv} cannot be made: {_explain(words) or words}")


def _version_of(environment: Environment) -> str | None:
    """Of the venv's Python; None where it cannot run or has no pip: half made, or its base was removed."""
    code = "import pip, sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')"
    try:
        done = subprocess.run([str(environment.python), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# -- an environment of someone else ------------------------------------------------------------------------------------


def _install_beside(root: Path, environment: Environment, files: Sequence[str], say: Say, again: Sequence[str]) -> None:
    missing = [line for name in files for line in requirement_lines(root, name) if not _satisfied(line)]
    kept = _torch_to_keep()
    if again or kept is None:
        missing = [*again, *(line for line in missing if line not in again)]
    else:
        missing = [line for line in missing if _name(line) != "torch"]
    if not missing:
        return
    say(f"Installing into {environment.reason}: {', '.join(missing)}")
    # Naming the torch that is there keeps pip from replacing it for the sake of another package.
    stay = [f"torch=={kept}"] if kept and not again else []
    _pip(environment, ["install", *missing, *stay], say)
    say("Set-up is complete.")


def _torch_to_keep() -> str | None:
    found = _version("torch")
    numbers = re.match(r"(\d+)\.(\d+)", found or "")
    return found if numbers and (int(numbers[1]), int(numbers[2])) >= OLDEST_TORCH else None


def _satisfied(line: str) -> bool:
    name, _, wanted = line.partition("==")
    found = _version(name)
    return found is not None and (not wanted or found.split("+")[0] == wanted)


def _pins(root: Path) -> list[str]:
    """What is installed of the program's requirements, version by version: what an extension may not change."""
    lines = [*requirement_lines(root, REQUIREMENTS), *requirement_lines(root, CONSTRAINTS)]
    found = {name: _version(name) for name in map(_name, lines)}
    return [f"{name}=={version}" for name, version in found.items() if version]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- pip ---------------------------------------------------------------------------------------------------------------


def _pip(environment: Environment, arguments: Sequence[str], say: Say) -> None:
    """Runs pip with its progress in view; what it complains of is shown only if it fails, with our reading of it."""
    extra = ["--extra-index-url", os.environ["TORCH_INDEX_URL"]] if os.environ.get("TORCH_INDEX_URL") else []
    verb, *rest = arguments
    command = [str(environment.python), "-m", "pip", verb, *extra, *rest]
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUTF8": "1"}
    on_screen = sys.stdout.isatty()  # then pip draws its own progress bars
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        with ended(_start(command, environ, None if on_screen else subprocess.PIPE, complaints)) as pip:
            for line in pip.stdout or ():
                if line.lstrip().startswith(("Downloading", "Installing", "Building")):
                    say("  " + line.strip()[:110])
            code = pip.wait()
        if code == 0:
            return
        complaints.seek(0)
        words = [line.rstrip() for line in complaints if line.strip() and "is ignored: it is neither" not in line]
    text = "\n".join(words[-12:])
    raise SetupError(f"{_explain(text) or 'pip could not install everything.'}\npip's last words:\n{text}")


def _start(command: Sequence[str], environ: Mapping[str, str], out: int | None, err: Any) -> subprocess.Popen[str]:
    """In a group of its own, so that what it starts can be ended with it."""
    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=sys.platform != "win32",
    )


def _explain(words: str) -> str:
    """What pip's complaint means for the user; empty where it is not understood."""
    if "No space left on device" in words or "Disk quota exceeded" in words:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
        return f"The disk is full ({free:.1f} GiB free): torch needs 2 GiB for a CPU, 8 GiB for an NVIDIA card."
    if "externally-managed-environment" in words:
        return "This Python belongs to the system and takes no packages: start without --no-venv."
    if "Permission denied" in words or "Read-only file system" in words:
        return "Set-up may not write there: check who owns the folder, or copy Easel to one of yours."
    offered = re.search(r"\(from versions: (.*)\)", words)
    unreachable = re.search(r"Connection|resolution|resolve|timed out|Timeout|Proxy|SSL|Retrying", words)
    if unreachable or (offered and offered[1] == "none"):
        return (
            "The packages cannot be fetched: this machine seems to be offline, or a proxy is in the way. "
            "Set-up needs the internet once; check the connection and start again, what was fetched is kept."
        )
    if "No matching distribution" in words:
        return "A pinned package is not offered for this Python or system: Python 3.11 or 3.12 are the safest choice."
    return ""


def _holds(marker: str) -> bool:
    """The two forms of marker that our files use: python_version against a number."""
    found = re.fullmatch(r'python_version\s*(>=|<)\s*"(\d+)\.(\d+)"', marker)
    if not found:
        raise SetupError(f"requirements: the marker {marker!r} is not one that set-up knows")
    reached = sys.version_info[:2] >= (int(found[2]), int(found[3]))
    return reached if found[1] == ">=" else not reached


def _name(line: str) -> str:
    return re.split(r"[=<>!~\[ ]", line, maxsplit=1)[0].lower()


def _python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
