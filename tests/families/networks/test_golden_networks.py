"""What A1111 computed with networks, tiling and token merging: latents within 1e-3, hashes to the letter."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from modules.families.family import Model, TextOptions
from modules.families.networks.applied import applied
from modules.families.networks.embeddings import EmbeddingStore
from modules.families.networks.tiling import tiling
from modules.families.networks.token_merging import token_merging
from modules.families.sd1 import SD1Family
from modules.generation.denoise import Encoder, denoise
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.library.header import read_header
from modules.library.network_tags import hashes_of, networks_from
from modules.library.networks import NetworkLibrary
from modules.prompt.networks import extract_networks
from modules.settings.schema import Settings
from tests.golden import golden as golden
from tests.golden import golden_cases
from tests.tiny import FP32

STARTS = ("lora_", "net_", "hyper_", "ti_", "after_", "tiling", "tome_")
QUICK = {"lora_te_unet", "lora_dyn2", "lora_two", "lora_missing", "net_tinylocon", "net_tinylokr", "hyper_0.3", "ti_st"}
QUICK |= {"tiling_wide", "tome_05"}
ALL = bool(os.environ.get("EASEL_ALL_CASES"))  # EASEL_ALL_CASES=1 pytest tests/families/networks/…
READY = {
    name: case
    for name, case in golden_cases().items()
    if name.startswith(STARTS) and not case["request"].get("enable_hr")  # the hires pass is the engine's
}
CASES = {name: case for name, case in READY.items() if ALL or name in QUICK}


class Bench(NamedTuple):
    model: Model
    library: NetworkLibrary
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder, root = golden / "models", tmp_path_factory.mktemp("networks")
    for kind, pattern in (("lora", "tiny[!e-]*.safetensors"), ("embedding", "tinyemb*"), ("hypernetwork", "tinyh*.pt")):
        (root / kind).mkdir()
        for path in folder.glob(pattern):
            (root / kind / path.name).symlink_to(path)
    library = NetworkLibrary({kind: [root / kind] for kind in ("lora", "embedding", "hypernetwork")}, root / "n.db")
    path = folder / "tiny-sd1.safetensors"
    model = SD1Family().load(path, read_header(path), folder / "tiny-sd1.yaml", FP32, lambda part: None)
    return Bench(model, library, golden / "cases")


@pytest.mark.parametrize("name", CASES or ["none"])
def test_case(name: str, bench: Bench) -> None:
    asked = CASES[name]["request"]
    overrides = asked["override_settings"]
    settings = Settings().with_overrides({"randn_source": "CPU"})
    prompt, tags = extract_networks(asked["prompt"])
    networks, warnings = networks_from(tags, bench.library)
    assert bool(warnings) == (name == "lora_missing")
    request = GenerationRequest(
        prompt=prompt,
        negative_prompt=asked["negative_prompt"],
        checkpoint="tiny-sd1",
        sampler=asked["sampler_name"],
        **{key: asked[key] for key in ("steps", "width", "height", "seed")},
        cfg_scale=float(asked["cfg_scale"]),
        batch_size=asked.get("batch_size", 1),
    )
    batch = plan(request).batches[0]
    with ExitStack() as stack, torch.inference_mode():
        report = stack.enter_context(applied(bench.model, networks, overrides.get("lora_functional", False)))
        stack.enter_context(tiling(bench.model, asked.get("tiling", False)))
        stack.enter_context(token_merging(bench.model, overrides.get("token_merging_ratio", 0)))
        embeddings = EmbeddingStore(bench.library).fitted(bench.model, report.embeddings)
        options = TextOptions(clip_skip=overrides.get("CLIP_stop_at_last_layers", 1), embeddings=embeddings)
        ours = denoise(batch, request, bench.model, settings, Encoder(bench.model, options), lambda step: None)
    theirs = np.load(bench.folder / f"{name}.npz")["pass_latent_0"]
    error = np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs)
    assert error <= 1e-3, error
    assert report.warnings == []
    infotext = CASES[name]["infotexts"][0]
    assert hashes_of(networks, "lora", bench.library) == told(infotext, "Lora hashes")
    assert embeddings.hashes([[asked["negative_prompt"]], [prompt]]) == told(infotext, "TI hashes")


def told(infotext: str, key: str) -> str | None:
    found = re.search(rf'{key}: "([^"]+)"', infotext)
    return found[1] if found else None


def test_many_cases_are_tried(golden: Path) -> None:
    assert len(READY) >= 24, json.dumps(sorted(READY))
    assert set(CASES) >= QUICK


def test_conditionings_with_embeddings(bench: Bench, golden: Path) -> None:
    measured: list[dict[str, Any]] = json.loads((golden / "prompts" / "prompts.json").read_text("utf-8"))
    conds = np.load(golden / "prompts" / "conds.npz")
    named = [entry for entry in measured if "tinyemb" in entry["prompt"].lower()]
    assert len(named) >= 4
    embeddings = EmbeddingStore(bench.library).fitted(bench.model)
    for entry in named:
        ours = bench.model.encode([entry["prompt"]], TextOptions(embeddings=embeddings)).cross[0].detach().numpy()
        theirs = conds[str(entry["index"])]
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs), entry["prompt"]
