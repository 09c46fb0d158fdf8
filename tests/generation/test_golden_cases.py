"""What A1111 computed from the same requests: latents within 1e-3, pictures within 45 dB, infotexts to the letter."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.families.family import Model
from modules.families.sd1 import SD1Family
from modules.generation import engine
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.header import read_header
from modules.runtime.device import Placement
from modules.settings.schema import Settings
from tests.golden import golden as golden
from tests.golden import golden_cases

# Fields of a request, and settings, that the engine has by now; cases with others belong to a later capability.
FIELDS = {"prompt", "negative_prompt", "steps", "cfg_scale", "width", "height", "seed", "sampler_name", "scheduler"}
FIELDS |= {"batch_size", "n_iter", "override_settings"}
SETTINGS = {"randn_source", "emphasis", "CLIP_stop_at_last_layers", "comma_padding_backtrack", "eta_noise_seed_delta"}
SETTINGS |= {
    "eta_ancestral", "eta_ddim", "s_churn", "s_tmin", "s_tmax", "s_noise", "sigma_min", "sigma_max", "rho",
    "always_discard_next_to_last_sigma", "uni_pc_variant", "uni_pc_skip_type", "uni_pc_order",
    "uni_pc_lower_order_final", "no_dpmpp_sde_batch_determinism", "ddim_discretize",
    "add_version_to_infotext", "batch_cond_uncond", "return_grid",
}  # fmt: skip
LATER = ("<lora", "<hypernet", "tinyemb", "#")  # prompt features


def is_ready(case: dict[str, Any]) -> bool:
    request = case["request"]
    prompts = request.get("prompt", "") + request.get("negative_prompt", "")
    return (
        case["endpoint"] == "txt2img"
        and case["status"] == 200
        and set(request) <= FIELDS
        and set(request.get("override_settings", {})) <= SETTINGS
        and request.get("sampler_name") in {info.name for info in SAMPLER_INFOS}
        and request.get("scheduler", "Automatic") in {info.label for info in SCHEDULE_INFOS}
        and not any(mark in prompts for mark in LATER)
    )


def is_quick(name: str, case: dict[str, Any]) -> bool:
    """A grid of samplers × schedules × steps is measured; one walk each is enough from day to day."""
    grid = name.startswith("sched__") and "__Euler__" not in name and "__DPMpp_3M_SDE__SGM" not in name
    return not grid and case["request"]["steps"] < 20


READY = {name: case for name, case in golden_cases().items() if is_ready(case)}
ALL = bool(os.environ.get("EASEL_ALL_CASES"))  # EASEL_ALL_CASES=1 pytest tests/generation/test_golden_cases.py
CASES = {name: case for name, case in READY.items() if ALL or is_quick(name, case)}


@dataclass(frozen=True)
class Bench:
    model: Model
    checkpoint: Checkpoint
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the source was measured; and networks this small only wait for one another on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    library = CheckpointLibrary([golden / "models"], tmp_path_factory.mktemp("cache") / "models.db")
    checkpoint = library.hashed(library.find("tiny-sd1"))
    placement = Placement(torch.device("cpu"), torch.float32, torch.float32, torch.float32, channels_last=False)
    header = read_header(checkpoint.path)
    model = SD1Family().load(checkpoint.path, header, checkpoint.config, placement, lambda part: None)
    return Bench(model, checkpoint, golden / "cases")


@pytest.mark.parametrize("name", CASES or ["none"])
def test_case(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    asked = case["request"]
    request = GenerationRequest(
        prompt=asked["prompt"],
        negative_prompt=asked.get("negative_prompt", ""),
        checkpoint="tiny-sd1",
        sampler=asked["sampler_name"],
        schedule=asked.get("scheduler", "Automatic"),
        steps=asked["steps"],
        cfg_scale=float(asked["cfg_scale"]),
        width=asked["width"],
        height=asked["height"],
        seed=asked["seed"],
        batch_size=asked.get("batch_size", 1),
        batch_count=asked.get("n_iter", 1),
    )
    latents: list[torch.Tensor] = []
    denoise = engine.denoise

    def recorded(*args: Any) -> torch.Tensor:
        latents.append(denoise(*args))
        return latents[-1]

    monkeypatch.setattr(engine, "denoise", recorded)
    settings = Settings().with_overrides(asked.get("override_settings", {}))
    images = list(engine.generate(plan(request), bench.model, bench.checkpoint, settings, lambda progress: None))

    measured = np.load(bench.folder / f"{name}.npz")
    for number, ours in enumerate(latents):
        theirs = measured[f"pass_latent_{number}"]
        assert np.linalg.norm(ours.numpy() - theirs) <= 1e-3 * np.linalg.norm(theirs)
    grids = len(case["infotexts"]) - len(images)
    assert [without_version(i.infotext) for i in images] == [without_version(t) for t in case["infotexts"][grids:]]
    pictures = sorted(bench.folder.glob(f"{name}.png")) + sorted(bench.folder.glob(f"{name}_?.png"))
    for ours_image, path in zip(images, pictures[grids:], strict=False):
        assert psnr(ours_image.image, Image.open(path)) >= 45


def test_many_cases_are_tried(golden: Path) -> None:
    assert len(CASES) >= 40, json.dumps(sorted(CASES))


def without_version(infotext: str) -> str:
    return infotext.split(", Version:")[0]


def psnr(one: Image.Image, other: Image.Image) -> float:
    """dB, of 8-bit values."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other))
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-10)))
