"""What A1111 computed from the same requests: latents within 1e-3, pictures within 45 dB, infotexts to the letter."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modules.families.networks.embeddings import EmbeddingStore
from modules.families.sd1 import SD1Family
from modules.generation import engine
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.generation.shelf import Shelf
from modules.library.checkpoints import CheckpointLibrary
from modules.library.header import read_header
from modules.library.networks import NetworkLibrary
from modules.library.vaes import VaeLibrary
from modules.postprocess.upscale import PLAIN_UPSCALERS, to_size
from modules.runtime.device import Placement
from modules.settings.schema import Settings
from tests.golden import golden as golden
from tests.golden import golden_cases
from tests.golden_requests import asked

# Features that the engine does not have yet, by what a case's request names; their cases wait.
LATER = ("script_name",)


def is_ready(name: str, case: dict[str, Any]) -> bool:
    asked_for = json.dumps(case["request"])
    return case["status"] == 200 and not any(mark in asked_for for mark in LATER)


# What our infotexts say and A1111's do not, on purpose: both change the picture.
ONLY_OURS = {
    "s_churn": ", Sigma churn: 5.0, Sigma tmin: 0.05, Sigma tmax: 10.0, Sigma noise: 1.01",
    "s_noise_sde": ", Sigma noise: 1.02",
    "hyper_0.3": ', Hypernet hashes: "tinyhyper: d8973098dec4"',
    "hyper_1": ', Hypernet hashes: "tinyhyper: d8973098dec4"',
}


def is_quick(name: str, case: dict[str, Any]) -> bool:
    """A grid of samplers × schedules × steps is measured; one walk each is enough from day to day."""
    grid = name.startswith("sched__") and "__Euler__" not in name and "__DPMpp_3M_SDE__SGM" not in name
    return not grid and not name.startswith(("steps05", "steps20")) and case["request"]["steps"] <= 20


READY = {name: case for name, case in golden_cases().items() if is_ready(name, case)}
ALL = bool(os.environ.get("EASEL_ALL_CASES"))  # EASEL_ALL_CASES=1 pytest tests/generation/test_golden_cases.py
CASES = {name: case for name, case in READY.items() if ALL or is_quick(name, case)}


@dataclass(frozen=True)
class Bench:
    shelf: Shelf
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
    networks = NetworkLibrary(
        {"lora": [golden / "models"], "embedding": [golden / "models"], "hypernetwork": [golden / "models"]},
        tmp_path_factory.mktemp("cache") / "networks.db",
    )
    shelf = replace(
        Shelf.of(model, checkpoint),
        upscaler=lambda name, settings: to_size(PLAIN_UPSCALERS[name]),
        networks=networks,
        embeddings=EmbeddingStore(networks),
    )
    return Bench(shelf, golden / "cases")


@pytest.mark.parametrize("name", CASES or ["none"])
def test_case(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    wanted = asked(case["request"], bench.folder.parent)
    shelf = replace(bench.shelf, picture=wanted.picture)
    latents: list[torch.Tensor] = []
    denoise = engine.denoise

    def recorded(*args: Any) -> torch.Tensor:
        latents.append(denoise(*args))
        return latents[-1]

    monkeypatch.setattr(engine, "denoise", recorded)
    settings = Settings().with_overrides(wanted.settings)
    images = list(engine.generate(plan(wanted.request), shelf, settings, lambda progress: None))

    measured = np.load(bench.folder / f"{name}.npz")
    passes = sum(name.startswith("pass_latent") for name in measured.files)
    for number, ours in enumerate(latents, start=passes - len(latents)):  # s_churn was recorded with another run before
        theirs = measured[f"pass_latent_{number}"]
        assert np.linalg.norm(ours.numpy() - theirs) <= 1e-3 * np.linalg.norm(theirs)
    grids = len(case["infotexts"]) - len(images)
    only_ours = ONLY_OURS.get(name, "")
    assert [without_version(i.infotext).replace(only_ours, "") for i in images] == [
        without_version(t) for t in case["infotexts"][max(grids, 0) :]
    ]
    pictures = sorted(bench.folder.glob(f"{name}.png")) + sorted(bench.folder.glob(f"{name}_[0-9].png"))
    ours_pictures = [image.image for image in images] + [other for image in images for _, other in image.beside]
    for picture, path in zip(ours_pictures, pictures[max(grids, 0) :], strict=bool(pictures)):
        assert psnr(picture, Image.open(path)) >= 45


def test_many_cases_are_tried(golden: Path) -> None:
    assert len(CASES) >= 40, json.dumps(sorted(CASES))


def without_version(infotext: str) -> str:
    return infotext.split(", Version:")[0]


def psnr(one: Image.Image, other: Image.Image) -> float:
    """dB, of 8-bit values."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other))
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-10)))


def test_another_vae_decodes_and_is_told(bench: Bench, tmp_path: Path) -> None:
    checkpoint = bench.shelf.identity("tiny-sd1")
    own = load_file(checkpoint.path)
    tensors = {name.removeprefix("first_stage_model."): t for name, t in own.items() if name.startswith("first_stage")}
    tensors["decoder.conv_out.bias"] = tensors["decoder.conv_out.bias"] + 0.3
    save_file(tensors, tmp_path / "bright.safetensors")
    vaes = VaeLibrary([tmp_path], [], tmp_path / "vaes.db")
    request = GenerationRequest(checkpoint="tiny-sd1", width=64, height=64, steps=1, seed=1)
    means = []
    for name in ("None", "bright.safetensors", "None"):
        chosen = vaes.choose(checkpoint, name)
        shelf = replace(bench.shelf, vae_for=lambda *_, vae=chosen: vaes.hashed(vae) if vae else None)
        (made,) = engine.generate(plan(request), shelf, Settings(), lambda progress: None)
        means.append(np.asarray(made.image).mean())
        assert ("VAE: bright.safetensors" in made.infotext and "VAE hash: " in made.infotext) == (chosen is not None)
    assert means[0] == means[2] < means[1] - 5
