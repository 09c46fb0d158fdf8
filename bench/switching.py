"""What loading and switching cost: seconds, and main memory. `python bench/switching.py [--switches 50] [--sdxl]`

Two SD1.5-size checkpoints of random weights (2.1 GB each, fp16) through the program's own holder, on its own placement:
the peak of one load against the model's size as it runs; switches between two that fit into memory; the same where only
one may stay, which reads the file anew each time, and what that leaves behind. With --sdxl the peak of one SDXL-size
checkpoint (6.9 GB, fp16) too, for a machine of 12.7 GB. Each part in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--sdxl", action="store_true")
    parser.add_argument("--total-gb", type=float, help="as if main memory had so many GB")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="the program's own, such as --no-half")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in ("prepare", "load", "switch", "reload", *(("prepare_sdxl", "load_sdxl") if arguments.sdxl else ())):
            command = [sys.executable, __file__, "--part", part, "--folder", folder]
            command += ["--switches", str(arguments.switches)]
            command += ["--total-gb", str(arguments.total_gb)] if arguments.total_gb else []
            command += ["--flags", *arguments.flags]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(part, json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=1), flush=True)


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"bytes": [write(arguments.folder / f"{name}.safetensors", "sd1", seed) for seed, name in enumerate("ab")]}


def prepare_sdxl(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"bytes": write(arguments.folder / "sdxl.safetensors", "sdxl", 0)}


def write(path: Path, kind: Any, seed: int) -> int:
    import torch

    from bench.checkpoints import random_parts, save_original

    torch.set_default_dtype(torch.float16)
    save_original(path, kind, random_parts(kind, {}, seed), torch.float16)
    return path.stat().st_size


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """One load: its time, and the most that this process had in memory meanwhile, mapped pages of the file included."""
    holder, checkpoints = scene(arguments)
    before, started, spent = forget_peak(), time.perf_counter(), time.process_time()
    model = holder.get(checkpoints[arguments.checkpoint if hasattr(arguments, "checkpoint") else "a"])
    took, cpu = time.perf_counter() - started, time.process_time() - spent
    from modules.families.holder import size_of

    size, peak = size_of(model), status("VmHWM")
    return {
        "placement": str(model.placement),
        "seconds": round(took, 2),
        "cpu_seconds": round(cpu, 2),
        "model_mb": size // 10**6,
        "libraries_mb": before // 10**6,
        "peak_mb": peak // 10**6,
        "peak_of_the_load_to_model": round((peak - before) / size, 3),
        "peak_to_model": round(peak / size, 3),
    }


def load_sdxl(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.checkpoint = "sdxl"
    return load(arguments)


def switch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both stay in memory."""
    return switched(arguments, None)


def reload(arguments: argparse.Namespace) -> dict[str, Any]:
    """One stays in memory: the other is read anew each time."""
    return switched(arguments, 1)


def switched(arguments: argparse.Namespace, most: int | None) -> dict[str, Any]:
    from modules.families.holder import Keeping

    holder, checkpoints = scene(arguments, Keeping(most))
    for name in "ab":
        holder.get(checkpoints[name])
    took, resident = [], [status("VmRSS")]
    for number in range(arguments.switches):
        started = time.perf_counter()
        holder.get(checkpoints["ab"[number % 2]])
        took.append(time.perf_counter() - started)
        resident.append(status("VmRSS"))
    return {
        "kept": [checkpoint.model_name for checkpoint in holder.kept()],
        "median_s": round(statistics.median(took), 4),
        "longest_s": round(max(took), 4),
        "resident_mb": [resident[0] // 10**6, resident[-1] // 10**6],
        "most_resident_mb": max(resident) // 10**6,
        "grown_percent": round(100 * (resident[-1] / resident[0] - 1), 2),
    }


def scene(arguments: argparse.Namespace, keeping: Any = None) -> tuple[Any, Any]:
    import torch

    from modules.families.holder import Keeping, ModelHolder
    from modules.library.checkpoints import CheckpointLibrary
    from modules.runtime.device import placement_from
    from modules.runtime.flags import parse
    from modules.runtime.memory import Memory

    library = CheckpointLibrary([arguments.folder], arguments.folder / "cache.db")
    checkpoints = {checkpoint.model_name: checkpoint for checkpoint in library.list()}
    host = Memory(torch.device("cpu"))
    if arguments.total_gb:
        host.total = lambda: int(arguments.total_gb * 1e9)  # type: ignore[method-assign]
    holder = ModelHolder(placement_from(parse(arguments.flags)), keeping=lambda: keeping or Keeping(), host=host)
    return holder, checkpoints


def forget_peak() -> int:
    """Linux only: from here on VmHWM is the peak of what comes. Bytes of now."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return status("VmRSS")


def status(key: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


PARTS = {
    "prepare": prepare,
    "load": load,
    "switch": switch,
    "reload": reload,
    "prepare_sdxl": prepare_sdxl,
    "load_sdxl": load_sdxl,
}

if __name__ == "__main__":
    main()
