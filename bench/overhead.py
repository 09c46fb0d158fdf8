"""What driving the networks costs: Easel's engine against diffusers' StableDiffusionPipeline, the same SD1.5-size
networks of random weights, 512 × 512, in the same dtype.
`python bench/overhead.py [--steps 2] [--rounds 2] [--dtype bfloat16]`

Each engine runs in a process of its own (peak memory), the rounds taking turns, since these machines are noisy. CPU
seconds are the fairer number where other work shares the machine.
"""

import argparse
import json
import os
import resource
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

PROMPT, SEED, SIZE, CFG = "a red apple on a table", 42, 512, 7.0


def main() -> None:
    arguments = parse()
    if arguments.engine:
        print(json.dumps(ENGINES[arguments.engine](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, "prepare", folder)
        results: dict[str, list[dict[str, Any]]] = {"easel": [], "diffusers": []}
        for _ in range(arguments.rounds):
            for engine in results:
                results[engine].append(run(arguments, engine, folder))
    report(results)


def run(arguments: argparse.Namespace, engine: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--engine", engine, "--folder", folder, "--dtype", arguments.dtype]
    command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{'':24}{'easel':>12}{'diffusers':>12}{'ratio':>9}")
    for key, unit in (
        ("step_cpu_s", "CPU s a step"),
        ("step_s", "s a step"),
        ("total_cpu_s", "CPU s a picture"),
        ("total_s", "s a picture"),
        ("load_s", "s to load"),
        ("peak_load_mb", "MB peak after load"),
        ("peak_mb", "MB peak"),
    ):
        ours, theirs = (statistics.median(r[key] for r in results[engine]) for engine in ("easel", "diffusers"))
        print(f"{unit:24}{ours:12.2f}{theirs:12.2f}{ours / theirs:9.3f}")


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Random weights at SD 1.5's sizes, once as a single file and once as diffusers' folder, both fp16."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from bench.checkpoints import TOKENIZER, networks, save_single_file

    unet, vae, text = networks({}, {}, {})
    folder = Path(arguments.folder)
    save_single_file(folder / "random.safetensors", unet, vae, text)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77)
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.to(torch.float16).save_pretrained(folder / "diffusers")
    return {}


def easel(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from modules.families.loader import ModelHolder
    from modules.generation.engine import generate
    from modules.generation.plan import plan
    from modules.generation.progress import Progress
    from modules.generation.request import GenerationRequest
    from modules.generation.shelf import Shelf
    from modules.library.checkpoints import CheckpointLibrary
    from modules.runtime.device import Placement
    from modules.settings.schema import Settings

    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    placement = Placement(torch.device("cpu"), dtype, dtype, dtype, channels_last=dtype is torch.bfloat16)
    folder = Path(arguments.folder)
    checkpoint = CheckpointLibrary([folder], folder / "cache.db").find("random.safetensors")
    started = time.perf_counter()
    model = ModelHolder(placement, lambda text: None).get(checkpoint)
    load_s, peak_load_mb = time.perf_counter() - started, peak_mb()
    request = GenerationRequest(
        prompt=PROMPT, checkpoint="random", seed=SEED, width=SIZE, height=SIZE, steps=arguments.steps, sampler="Euler",
        cfg_scale=CFG,
    )  # fmt: skip
    clock = Clock()

    def watch(progress: Progress) -> None:
        if progress.phase == "sampling":
            clock.step()

    list(generate(plan(request), Shelf.of(model, checkpoint), Settings(), watch))
    return clock.result() | {"load_s": load_s, "peak_load_mb": peak_load_mb, "peak_mb": peak_mb()}


def diffusers(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    started = time.perf_counter()
    pipeline = StableDiffusionPipeline.from_pretrained(Path(arguments.folder) / "diffusers", torch_dtype=dtype)
    if dtype is torch.bfloat16:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    load_s, peak_load_mb = time.perf_counter() - started, peak_mb()
    clock = Clock()

    def on_step(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        clock.step()
        return kwargs

    pipeline(
        PROMPT, num_inference_steps=arguments.steps, width=SIZE, height=SIZE, guidance_scale=CFG,
        generator=torch.Generator().manual_seed(SEED), callback_on_step_end=on_step,
    )  # fmt: skip
    return clock.result() | {"load_s": load_s, "peak_load_mb": peak_load_mb, "peak_mb": peak_mb()}


class Clock:
    """Wall and CPU seconds from its making to `result`, and between steps."""

    def __init__(self) -> None:
        self._start = self._now()
        self._steps: list[tuple[float, float]] = []

    def step(self) -> None:
        self._steps.append(self._now())

    def result(self) -> dict[str, float]:
        end = self._now()
        count = len(self._steps) - 1
        return {
            "step_s": (self._steps[-1][0] - self._steps[0][0]) / count,
            "step_cpu_s": (self._steps[-1][1] - self._steps[0][1]) / count,
            "total_s": end[0] - self._start[0],
            "total_cpu_s": end[1] - self._start[1],
        }

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


ENGINES = {"prepare": prepare, "easel": easel, "diffusers": diffusers}

if __name__ == "__main__":
    main()
