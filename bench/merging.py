"""What merging two checkpoints costs: seconds, MB/s and memory, tensor by tensor as Easel does it, and all in memory as
it is usually done. Random weights of SD 1.5's true sizes, made here.
`python bench/merging.py [--folder DIR] [--rounds 2]`

Each way runs in a process of its own, in turns. Memory: how far the resident set grew above what it was before (Python,
torch and headers are loaded by then), pages of mapped files included; as a share of one model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from bench.checkpoints import original_tensors, random_parts  # noqa: E402
from modules.families.formats import header_of  # noqa: E402
from modules.families.merge import Source, header_bytes, merge_plan, write  # noqa: E402
from modules.runtime.files import growing  # noqa: E402

SHARE = 0.3


def main() -> None:
    arguments = parse()
    if arguments.way:
        print(json.dumps(WAYS[arguments.way](Path(arguments.folder))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run("prepare", folder)
        results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS if way != "prepare"}
        for _ in range(arguments.rounds):
            for way in results:
                results[way].append(run(way, folder))
    report(results)


def run(way: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{'':42}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'peak MB':>9}{'of a model':>12}")
    for way, runs in results.items():
        median = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        rate = median["size"] / 1e6 / median["s"]
        share = median["peak"] / median["model"]
        print(f"{way:42}{median['s']:8.2f}{median['cpu_s']:8.2f}{rate:8.0f}{median['peak'] / 1e6:9.0f}{share:12.3f}")


def prepare(folder: Path) -> dict[str, Any]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in original_tensors("sd1", random_parts("sd1", {})).items()}
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator).mul_(0.02).half() for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        if name != "c":
            torch.save({"state_dict": tensors}, folder / f"{name}.ckpt")
    return {}


def streamed(*names: str, method: str = "Weighted sum") -> Callable[[Path], dict[str, Any]]:
    def merge(folder: Path) -> dict[str, Any]:
        sources = [Source(folder / name, header_of(folder / name)) for name in names]

        def work() -> None:
            plan = merge_plan(sources, method, 0.3)  # type: ignore[arg-type]
            with growing(folder / "result.safetensors", overwrite=True) as file:
                write(plan, header_bytes(plan, {"format": "pt"}), file, lambda done, total: None)

        return measured(work, folder, folder / names[0])

    return merge


def in_memory(folder: Path) -> dict[str, Any]:
    def work() -> None:
        a, b = load_file(folder / "a.safetensors"), load_file(folder / "b.safetensors")
        for name in a:
            a[name] = a[name] * 0.7 + b[name] * 0.3
        save_file(a, folder / "result.safetensors", {"format": "pt"})
        with (folder / "result.safetensors").open("rb") as file:
            os.fsync(file.fileno())

    return measured(work, folder, folder / "a.safetensors")


def measured(work: Callable[[], None], folder: Path, model: Path) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, began, cpu = memory("VmRSS"), time.monotonic(), time.process_time()
    work()
    s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    peak = memory("VmHWM") - before
    result = folder / "result.safetensors"
    size = result.stat().st_size
    result.unlink()
    return {"s": s, "cpu_s": cpu_s, "peak": peak, "size": size, "model": model.stat().st_size}


def memory(what: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "prepare": prepare,
    "weighted sum": streamed("a.safetensors", "b.safetensors"),
    "add difference": streamed("a.safetensors", "b.safetensors", "c.safetensors", method="Add difference"),
    "weighted sum of .ckpt files": streamed("a.ckpt", "b.ckpt"),
    "weighted sum, all in memory (fp16)": in_memory,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write about 12 GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
