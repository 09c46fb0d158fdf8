"""What A1111 computed from the same requests: latents within 1e-3, pictures within 45 dB, infotexts to the letter."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.parity import LARGEST_ERROR, LOWEST_PSNR, feature_of, measure, stand, why_not
from modules.generation import engine
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.generation.shelf import Shelf
from modules.library.vaes import VaeLibrary
from modules.settings.schema import Settings
from tests.golden import golden as golden
from tests.golden import golden_cases


def is_quick(name: str, case: dict[str, Any]) -> bool:
    """A grid of samplers × schedules × steps is measured; one walk each is enough from day to day."""
    grid = name.startswith("sched__") and "__Euler__" not in name and "__DPMpp_3M_SDE__SGM" not in name
    return not grid and not name.startswith(("steps05", "steps20")) and case["request"]["steps"] <= 20


READY = {name: case for name, case in golden_cases().items() if why_not(case) is None}
ALL = bool(os.environ.get("EASEL_ALL_CASES"))  # EASEL_ALL_CASES=1 pytest tests/generation/test_golden_cases.py
CASES = {name: case for name, case in READY.items() if ALL or is_quick(name, case)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the source was measured; and networks this small only wait for one another on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shelf(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return stand(golden, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", CASES or ["none"])
def test_case(name: str, golden: Path, shelf: Shelf) -> None:
    found = measure(name, CASES[name], golden, shelf)
    assert max(found.latent_errors) <= LARGEST_ERROR
    assert min(found.psnrs, default=LOWEST_PSNR) >= LOWEST_PSNR
    assert found.infotexts == found.wanted_infotexts


def test_many_cases_are_tried(golden: Path) -> None:
    assert len(CASES) >= 40, json.dumps(sorted(CASES))


def test_another_vae_decodes_and_is_told(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = shelf.identity("tiny-sd1")
    own = load_file(checkpoint.path)
    tensors = {name.removeprefix("first_stage_model."): t for name, t in own.items() if name.startswith("first_stage")}
    tensors["decoder.conv_out.bias"] = tensors["decoder.conv_out.bias"] + 0.3
    save_file(tensors, tmp_path / "bright.safetensors")
    vaes = VaeLibrary([tmp_path], [], tmp_path / "vaes.db")
    request = GenerationRequest(checkpoint="tiny-sd1", width=64, height=64, steps=1, seed=1)
    means = []
    for name in ("None", "bright.safetensors", "None"):
        chosen = vaes.choose(checkpoint, name)
        with_vae = replace(shelf, vae_for=lambda *_, vae=chosen: vaes.hashed(vae) if vae else None)
        (made,) = engine.generate(plan(request), with_vae, Settings(), lambda progress: None)
        means.append(np.asarray(made.image).mean())
        assert ("VAE: bright.safetensors" in made.infotext and "VAE hash: " in made.infotext) == (chosen is not None)
    assert means[0] == means[2] < means[1] - 5


def test_every_case_belongs_to_a_feature(golden: Path) -> None:
    assert [name for name in golden_cases() if feature_of(name) == "Other"] == []
