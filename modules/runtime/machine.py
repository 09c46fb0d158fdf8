"""What machine this is and which versions of what run on it: facts without paths or secrets, for the system info and
the bench. Imports no torch; what torch knows comes from torch_facts.py."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from modules.runtime.version import VERSION

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "xformers")


@dataclass(frozen=True)
class Machine:
    system: str  # "Linux 6.1.0, x86_64"
    processor: str
    cores: int  # that this process may use
    memory: int  # bytes
    memory_free: int  # bytes that a new process could have


@dataclass(frozen=True)
class DeviceFacts:
    """What torch says of the device that the networks run on, said once by the thread that owns it."""

    device: str  # "cuda:0"
    name: str
    capability: str | None  # "7.5"; of CUDA devices
    built_for: str  # what this torch drives: "CUDA 12.8", "ROCm 6.4", "CPU"
    threads: int
    processor_features: tuple[str, ...]  # those that matter for speed
    dtypes: Mapping[str, str] = field(default_factory=dict)  # by part
    channels_last: bool = False
    attention: str = ""  # the backend of the last run, or of the next one


def this_machine() -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        _processor(),
        _cores(),
        memory.total,
        memory.available,
    )


def versions() -> dict[str, str]:
    """By name; packages that are not installed are left out."""
    found = {"Easel": VERSION, "Python": platform.python_version()}
    if commit := _commit():
        found["Easel"] += f" ({commit})"
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Bytes: the most main memory that this process has had."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str | None:
    """Of the program's own folder, where it is a git clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
