"""What the processes of bench/engine.py do: write the checkpoint, measure the machine, make pictures with one engine.
Each prints one line of JSON. Imports torch, so bench/engine.py itself does not import it."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.checkpoints import TOKENIZER, Kind, random_parts, save_original
from bench.engine import Case, Checkpoint
from modules.app import App, TorchEngine
from modules.families.hints import config_of
from modules.generation.plan import plan
from modules.generation.progress import Progress
from modules.generation.request import GenerationRequest
from modules.runtime import flags as command_line
from modules.runtime.device import cpu_has_bf16, placement_from
from modules.runtime.machine import peak_memory
from modules.runtime.paths import paths_from
from modules.runtime.torch_facts import device_facts
from modules.settings.schema import Settings

PROMPT, NEGATIVE, SEED, CFG = "a red apple on a table", "blurry", 42, 7.0
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PARTS = {"sd1": ("unet", "vae", "text_encoder"), "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2")}


# --- the machine ----------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The device that our flags choose, its memory, what multiplies fast on it and how fast: FLOP a second of products
    and convolutions by dtype, on the CPU by CPU seconds. And the FLOP of each case."""
    placement = placement_from(command_line.parse(arguments.flags))
    device = placement.device
    free, memory = torch.cuda.mem_get_info(device) if device.type == "cuda" else (None, None)
    fast = torch.float16 if device.type != "cpu" else torch.bfloat16 if cpu_has_bf16() else torch.float32
    used = [torch.float32, fast, placement.unet_dtype, placement.vae_dtype]
    dtypes = [dtype for dtype in dict.fromkeys(used) if name_of(dtype) in SHORT]
    return {
        "facts": asdict(device_facts(placement)),
        "memory": memory,
        "memory_free": free,
        "fast": name_of(fast),
        "rates": {name_of(dtype): rates_of(device, dtype, arguments.tiny) for dtype in dtypes},
        "flop": {case.name: flop_of(case, arguments.sizes) for case in arguments.cases},
    }


def rates_of(device: torch.device, dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    torch.backends.cudnn.benchmark = True
    side = 128 if tiny else 2048 if device.type == "cpu" else 8192
    batch = 2 if device.type == "cpu" else 16
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    spent_s = 0.01 if tiny else 1.0
    matrix = 2 * side**3 / best_seconds(lambda: a @ b, device, spent_s)
    flop = seconds = 0.0
    for channels, edge in ((32, 8),) if tiny else ((320, 64), (640, 32), (1280, 16)):  # as in SD 1.5's UNet at 512²
        x = torch.randn(batch, channels, edge, edge, device=device).to(dtype, memory_format=torch.channels_last)
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device)
        layer = layer.to(dtype=dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds += best_seconds(lambda layer=layer, x=x: layer(x), device, spent_s)
        flop += 2 * batch * edge**2 * channels**2 * 9
    return {"matrix": matrix, "convolution": flop / seconds}


def best_seconds(work: Callable[[], Any], device: torch.device, spent_s: float) -> float:
    """The least of many tries: what the machine can do when nothing disturbs it."""
    work()
    least, end = float("inf"), time.perf_counter() + spent_s
    while time.perf_counter() < end or least == float("inf"):
        clock = Clock(device)
        for _ in range(3):
            work()
        wall, cpu = clock.seconds(clock.start, clock.mark())
        least = min(least, (cpu if device.type == "cpu" else wall) / 3)
    return least


def flop_of(case: Case, sizes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Of one step with guidance and of one decoding: {"step": {"matrix", "convolution"}, "decode": …}."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kind, edge = case.checkpoint.kind, case.size // 8
    parts = sizes.get(kind, {}).get("parts", {})
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**config_of(kind, "unet"), **parts.get("unet", {})}).eval()
        vae = AutoencoderKL.from_config({**config_of(kind, "vae"), **parts.get("vae", {})}).eval()
        batch = 2 * case.batch
        x, latents = torch.empty(batch, 4, edge, edge), torch.empty(case.batch, 4, edge, edge)
        cross = torch.empty(batch, 77, unet.config.cross_attention_dim)
        added = None
        if kind == "sdxl":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            added = {"text_embeds": torch.empty(batch, pooled), "time_ids": torch.empty(batch, 6)}
        timestep = torch.ones(batch)
    return {
        "step": counted(lambda: unet(x, timestep, cross, added_cond_kwargs=added)),
        "decode": counted(lambda: vae.decode(latents)),
    }


def counted(work: Callable[[], Any]) -> dict[str, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    by_operation = counter.get_flop_counts()["Global"]
    convolution = sum(count for name, count in by_operation.items() if "convolution" in str(name))
    return {"matrix": sum(by_operation.values()) - convolution, "convolution": convolution}


# --- the checkpoint -------------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Random weights in fp16: one ordinary file, and the configuration with which diffusers reads the same file."""
    checkpoint: Checkpoint = arguments.case.checkpoint
    kind = checkpoint.kind
    tiny = arguments.sizes.get(kind, {})
    torch.set_default_dtype(torch.float16)  # made as they are kept: SDXL in fp32 would not fit everywhere
    parts = random_parts(kind, tiny.get("parts", {}))
    torch.set_default_dtype(torch.float32)
    file = file_of(arguments)
    save_original(file, kind, parts, torch.float16, tiny.get("metadata"))
    configure(kind, arguments.folder / f"{kind}-config", tiny.get("parts", {}))
    return {"bytes": file.stat().st_size}


def configure(kind: Kind, folder: Path, sizes: Mapping[str, Any]) -> None:
    components: dict[str, list[Any]] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if kind == "sdxl":
        components["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        components["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        components |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None])
    pipeline = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    write_json(folder / "model_index.json", {"_class_name": pipeline, **components})
    for part in PARTS[kind]:
        write_json(folder / part / "config.json", {**config_of(kind, part), **sizes.get(part, {})})
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "EulerDiscreteScheduler", **scheduler})
    for name in ("tokenizer", "tokenizer_2"):
        if name in components:
            shutil.copytree(TOKENIZER, folder / name)
            write_json(folder / name / "tokenizer_config.json", {"model_max_length": 77, "pad_token": "<|endoftext|>"})


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), "utf-8")


def file_of(arguments: argparse.Namespace) -> Path:
    return Path(arguments.folder) / f"{arguments.case.checkpoint.kind}-random.safetensors"


# --- the engines ----------------------------------------------------------------------------------------------------


def easel(arguments: argparse.Namespace) -> dict[str, Any]:
    """Through the App, as a job goes: placement, memory and attention are as our flags have them."""
    case: Case = arguments.case
    with tempfile.TemporaryDirectory(dir=arguments.folder) as data:
        own = ["--data-dir", data, "--ckpt-dir", str(arguments.folder)]
        flags = command_line.parse([*arguments.flags, *own])
        app = App(paths_from(flags), flags)
        checkpoint = app.library.find(file_of(arguments).name)
        engine = TorchEngine(app)
        placement = placement_from(flags)
        loading = Clock(placement.device)
        engine.load(checkpoint)
        loaded = loading.mark()

        def pictures(steps: int, clock: "Clock") -> list[Any]:
            request = GenerationRequest(
                prompt=PROMPT, negative_prompt=NEGATIVE, checkpoint=checkpoint.name, seed=SEED, width=case.size,
                height=case.size, steps=steps, sampler="Euler", cfg_scale=CFG, batch_size=case.batch,
            )  # fmt: skip
            settings = Settings(randn_source="CPU")  # diffusers gets the same noise

            def watch(progress: Progress) -> None:
                if progress.phase == "sampling":
                    clock.step()

            return [made.image for made in engine.generate(plan(request), checkpoint, settings, watch)]

        result = timed(pictures, loading, loaded, arguments)
        app.store.close()
    mixed = placement.vae_mixed and placement.vae_dtype is torch.float32  # multiplies in bf16, adds up in fp32
    dtypes = [name_of(placement.unet_dtype), "bfloat16" if mixed else name_of(placement.vae_dtype)]
    how = SHORT[dtypes[0]]
    if mixed or dtypes[0] != dtypes[1]:
        how = f"UNet {how}, VAE {SHORT[dtypes[1]]}" + ("/fp32" if mixed else "")
    return result | {"how": how, "dtype": dtypes[0], "vae_dtype": dtypes[1]}


def diffusers_fp32(arguments: argparse.Namespace) -> dict[str, Any]:
    """As it comes: eager, in fp32."""
    return diffusers(arguments, torch.float32, channels_last=False, fused=False)


def diffusers_half(arguments: argparse.Namespace) -> dict[str, Any]:
    """As it comes, in the fast dtype."""
    return diffusers(arguments, getattr(torch, arguments.fast), channels_last=False, fused=False)


def diffusers_best(arguments: argparse.Namespace) -> dict[str, Any]:
    """With what its documentation advises for this device, short of torch.compile, which needs Triton, and minutes."""
    cuda = placement_from(command_line.parse(arguments.flags)).device.type == "cuda"
    return diffusers(arguments, getattr(torch, arguments.fast), channels_last=True, fused=cuda)


def diffusers(arguments: argparse.Namespace, dtype: torch.dtype, channels_last: bool, fused: bool) -> dict[str, Any]:
    import diffusers
    from diffusers.utils import logging

    logging.disable_progress_bar()
    case: Case = arguments.case
    kind = case.checkpoint.kind
    device = placement_from(command_line.parse(arguments.flags)).device
    loading = Clock(device)
    pipelines = {"sd1": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
    config = str(Path(arguments.folder) / f"{kind}-config")
    pipeline = pipelines[kind].from_single_file(
        str(file_of(arguments)), config=config, local_files_only=True, torch_dtype=dtype
    )
    pipeline.to(device)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if fused:
        pipeline.fuse_qkv_projections()
    loaded = loading.mark()
    pipeline.set_progress_bar_config(disable=True)

    def pictures(steps: int, clock: "Clock") -> list[Any]:
        def on_step(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            clock.step()
            return kwargs

        made: list[Any] = pipeline(
            PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, width=case.size, height=case.size,
            guidance_scale=CFG, num_images_per_prompt=case.batch, callback_on_step_end=on_step,
            latents=noise(case, device, dtype),
        ).images  # fmt: skip
        return made

    name = name_of(dtype)
    how = ", ".join([SHORT[name], *["channels_last"] * channels_last, *["fused QKV"] * fused])
    return timed(pictures, loading, loaded, arguments) | {"how": how, "dtype": name, "vae_dtype": name}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def noise(case: Case, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, 4, H/8, W/8): each image's own, from its seed, as ours with randn_source CPU."""
    edge = case.size // 8
    shares = [torch.randn(4, edge, edge, generator=torch.Generator().manual_seed(SEED + i)) for i in range(case.batch)]
    return torch.stack(shares).to(device, dtype)


# --- time and memory ------------------------------------------------------------------------------------------------


Mark = tuple[Any, float]  # when on the device (seconds, or a CUDA event), and the process's CPU seconds by then


class Clock:
    """Wall and CPU seconds. Marks on a GPU are events in its queue: nothing waits for them until they are read."""

    def __init__(self, device: torch.device):
        self._device = device
        wait_for(device)
        self.start = self._now()
        self.steps: list[Mark] = []

    def step(self) -> None:
        self.steps.append(self._now())

    def mark(self) -> Mark:
        """Now, when the device has done all that it was asked for."""
        wait_for(self._device)
        return self._now()

    def seconds(self, begin: Mark, end: Mark) -> tuple[float, float]:
        wait_for(self._device)
        cuda = self._device.type == "cuda"
        return begin[0].elapsed_time(end[0]) / 1000 if cuda else end[0] - begin[0], end[1] - begin[1]

    def _now(self) -> Mark:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event, time.process_time()
        return time.perf_counter(), time.process_time()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(
    pictures: Callable[[int, Clock], Sequence[Any]], loading: Clock, loaded: Mark, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Runs, and what it took. `pictures`: makes them in so many steps, telling the clock after each."""
    device = placement_from(command_line.parse(arguments.flags)).device
    after_loading = peak(device)
    if arguments.warm_up:
        pictures(arguments.warm_up, Clock(device))
    clock = Clock(device)
    images = pictures(arguments.steps, clock)
    end = clock.mark()
    if arguments.picture:
        numpy.save(arguments.picture, numpy.stack([numpy.asarray(image) for image in images]))
    steps = clock.steps[-arguments.steps :]  # without those of an attempt that ran out of memory
    result: dict[str, Any] = {"peak_load": after_loading, "peak": peak(device)}
    for name, (begin, until), share in (
        ("load", (loading.start, loaded), 1),
        ("step", (steps[0], steps[-1]), len(steps) - 1),  # the first one also warms up
        ("decode", (steps[-1], end), 1),
        ("total", (clock.start, end), 1),
    ):
        wall, cpu = clock.seconds(begin, until)
        result |= {f"{name}_s": wall / share, f"{name}_cpu_s": cpu / share}
    return result


def peak(device: torch.device) -> dict[str, int]:
    """Bytes."""
    most = {"ram": peak_memory()}
    if device.type == "cuda":
        most |= {"device": torch.cuda.max_memory_allocated(device), "held": torch.cuda.max_memory_reserved(device)}
    return most


TASKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "measure": measure,
    "prepare": prepare,
    "easel": easel,
    "diffusers-fp32": diffusers_fp32,
    "diffusers-half": diffusers_half,
    "diffusers-best": diffusers_best,
}


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What bench/engine.py asks for, as it asks (Bench.ask)."""
    arguments = argparse.Namespace(**asked)
    arguments.cases = [Case.named(name, arguments.side) for name in arguments.cases]
    arguments.case = Case.named(arguments.case, arguments.side) if arguments.case else None
    arguments.folder = Path(arguments.folder)
    arguments.sizes = json.loads(Path(arguments.sizes).read_text("utf-8")) if arguments.sizes else {}
    arguments.tiny = bool(arguments.sizes)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return TASKS[arguments.task](arguments)
    except (torch.OutOfMemoryError, MemoryError):
        return {"failed": "out of memory"}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
