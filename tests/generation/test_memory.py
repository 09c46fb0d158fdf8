"""Whole runs on devices that are too small: the same pictures, and it is said how they came about."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.checkpoints import random_parts, vae_tensors
from modules.families.footprint import footprint_of
from modules.families.levels import Level
from modules.families.networks.embeddings import EmbeddingStore
from modules.families.residence import NotEnoughMemory, Residence
from modules.generation.engine import generate
from modules.generation.infotext import parse
from modules.generation.made import GeneratedImage
from modules.generation.plan import plan
from modules.generation.progress import Interrupted, Progress
from modules.generation.reading import to_request_fields
from modules.generation.request import GenerationRequest, Hires, Init, Mask, Refiner
from modules.generation.work import work_of
from modules.imaging.resize import lanczos
from modules.library.networks import NetworkLibrary
from modules.runtime.memory import GIB, MIB, SimulatedMemory
from modules.settings.schema import Settings
from tests.generation.test_families import INIT, MASK, Models
from tests.simulated import Boastful, simulated
from tests.tiny import TEXT, UNET, VAE, save_tiny_of, tiny_parts

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd1", "sdxl", "refiner"):
        save_tiny_of(folder / f"{kind}.safetensors", kind, tiny_parts(kind))  # type: ignore[arg-type]
    wide = {"unet": {**UNET, "block_out_channels": [64, 128, 128]}, "vae": VAE, "text_encoder": TEXT}
    save_tiny_of(folder / "wide.safetensors", "sd1", random_parts("sd1", wide))
    for name in ("VAE", "lora", "embedding"):
        (folder / name).mkdir()
    save_file({f"{TO_K}.diff": torch.randn(32, 32)}, folder / "lora" / "one.safetensors")
    save_file({f"{TO_K}.diff": torch.randn(64, 32)}, folder / "lora" / "broad.safetensors")
    save_file({"emb_params": torch.randn(1, 32)}, folder / "embedding" / "zz.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in vae_tensors(tiny_parts("sd1", seed=5).vae).items()}
    save_file(tensors, folder / "VAE" / "other.safetensors")
    models = Models(folder)
    library = NetworkLibrary({"lora": [folder / "lora"], "embedding": [folder / "embedding"]}, folder / "networks.db")
    models.shelf = replace(
        models.shelf,
        networks=library,
        embeddings=EmbeddingStore(library),
        upscaler=lambda name, settings: lanczos,
    )
    yield models


def on(models: Models, memory: SimulatedMemory, least: Level = "whole") -> Residence:
    """The models on this device."""
    residence = Residence(memory, lambda family: least)
    models.shelf = replace(models.shelf, residence=residence)
    return residence


def same(one: GeneratedImage, two: GeneratedImage) -> bool:
    a, b = (np.asarray(made.image, dtype=int) for made in (one, two))
    return bool(np.abs(a - b).max() <= 1)


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "LoRA": {"prompt": "a cat <lora:one:1>"},
    "LoRA beside the weights": {"prompt": "a cat <lora:one:1>", "settings": {"lora_functional": True}},
    "embedding": {"prompt": "a zz cat"},
    "another VAE": {"settings": {"sd_vae": "other.safetensors"}},
    "hires fix": {"hires": Hires(scale=2, denoising_strength=0.7)},
    "hires fix through pixels": {"hires": Hires(scale=1.5, upscaler="Lanczos", denoising_strength=0.7)},
    "img2img": {"init": Init(images=(INIT,), denoising_strength=0.7)},
    "inpainting": {"init": Init(images=(INIT,), mask=Mask(image=MASK), denoising_strength=0.7)},
    "step caching": {"steps": 6, "settings": {"step_caching": 3}},
    "a prompt of several parts": {"prompt": "a cat AND a dog :0.5", "batch_size": 2},
    "SDXL with its refiner": {"checkpoint": "sdxl", "refiner": Refiner(checkpoint="refiner", switch_at=0.5)},
}


def made(models: Models, name: str, **more: Any) -> GeneratedImage:
    wanted = {"checkpoint": "sd1", "steps": 2, **REQUESTS[name], **more}
    settings = Settings().with_overrides({"randn_source": "CPU", **wanted.pop("settings", {})})
    base = {"prompt": "a cat", "width": 64, "height": 64, "seed": 7}
    request = GenerationRequest(**{**base, **wanted})
    return list(generate(plan(request), models.shelf, settings, lambda progress: None))[-1]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_feature_works_at_every_level(models: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(models, SimulatedMemory(GIB, moves=False))
    wanted = made(models, name)
    levels: tuple[Level, ...] = ("in turn", "streamed")
    for level in levels:
        with simulated(SimulatedMemory(GIB), monkeypatch, counts=False) as memory:
            residence = on(models, memory, level)
            got = made(models, name)
            assert not memory.present
        assert residence.plan and residence.plan.level == level
        assert same(got, wanted)
        assert got.infotext == wanted.infotext and got.warnings == wanted.warnings


def test_down_the_ladder(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says it has plenty, and has less and less."""
    model = models.loaded("wide")
    sizes = footprint_of(model)
    assert sizes.unet > 2 * (sizes.text + sizes.vae)
    request = {"checkpoint": "wide", "batch_size": 2, "prompt": "a cat <lora:broad:1>"}
    on(models, SimulatedMemory(GIB, moves=False))
    wanted = made(models, "plain", **request)
    before = [weight.clone() for weight in model.unet.parameters()]
    reached = []
    for limit in (sizes.weights + 8 * MIB, sizes.unet + 4 * MIB, sizes.unet - MIB, sizes.largest_text):
        with simulated(Boastful(limit), monkeypatch) as memory:
            residence = on(models, memory)
            try:
                got = made(models, "plain", **request)
            except NotEnoughMemory as refused:
                assert "all ways of saving memory were tried" in str(refused)
                assert not memory.present
                reached.append("refused")
                continue
        plan = residence.plan
        assert plan is not None
        reached.append(plan.level)
        assert same(got, wanted)
        if plan.level != "whole":
            assert f'Memory fallback: "{plan}"' in got.infotext or f"Memory fallback: {plan}," in got.infotext
            assert got.warnings == (f"there was not enough memory, so it was done with less: {plan}",)
    assert reached == ["whole", "in turn", "streamed", "refused"]
    assert all(torch.equal(now, then) for now, then in zip(model.unet.parameters(), before, strict=True))


def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles_and_not_sampled_again(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = footprint_of(models.loaded("sd1"))
    steps = []
    request = GenerationRequest(prompt="a cat", checkpoint="sd1", seed=7, width=448, height=256, steps=2)
    with simulated(Boastful(int(sizes.weights + 0.7 * sizes.decode_pixel * 448 * 256), False), monkeypatch) as memory:
        residence = on(models, memory)
        settings = Settings().with_overrides({"randn_source": "CPU"})
        (got,) = generate(plan(request), models.shelf, settings, lambda progress: steps.append(progress.step))
    assert residence.plan and residence.plan.tile == 32
    assert "VAE tiles: 256" in got.infotext and "Memory fallback" in got.infotext
    assert steps == sorted(steps)


def test_the_next_small_job_runs_at_full_speed(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = footprint_of(models.loaded("sd1"))
    with simulated(Boastful(sizes.weights + 20 * MIB), monkeypatch) as memory:
        residence = on(models, memory)
        large = made(models, "plain", width=192, height=192)
        assert residence.plan and residence.plan.level != "whole" and "Memory fallback" in large.infotext
        small = made(models, "plain", width=64, height=64)
        assert residence.plan.level == "whole" and "Memory fallback" not in small.infotext and not small.warnings


def test_too_large_a_request_is_refused_before_anything_is_made(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = footprint_of(models.loaded("sd1"))
    with simulated(SimulatedMemory(sizes.weights * 2), monkeypatch) as memory, memory.counting() as counting:
        on(models, memory)
        with pytest.raises(NotEnoughMemory, match=r"not enough memory: 1 × 2048×2048 with SD 1.x takes at least \d+"):
            made(models, "plain", width=2048, height=2048)
        assert counting.peak < MIB
        assert not made(models, "plain").warnings


def test_without_moving_tiles_and_rows_help(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU: its weights are where they are."""
    request = {"width": 448, "height": 256, "steps": 1}
    on(models, SimulatedMemory(GIB, moves=False))
    wanted = made(models, "img2img", **request)
    sizes = footprint_of(models.loaded("sd1"))
    whole = int(sizes.weights + sizes.decode_pixel * 448 * 256)
    with simulated(SimulatedMemory(int(whole * 0.85), moves=False), monkeypatch) as memory:
        residence = on(models, memory)
        got = made(models, "img2img", **request)
    assert residence.plan and residence.plan.tile and "VAE tiles: " in got.infotext
    assert "Memory fallback" not in got.infotext  # it was planned
    assert np.abs(np.asarray(got.image, dtype=int) - np.asarray(wanted.image, dtype=int)).mean() < 8


@pytest.mark.parametrize("level", ["in turn", "streamed"])
def test_interrupted_runs_give_what_there_is(models: Models, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(progress: Progress) -> None:
        if progress.preview:
            assert isinstance(progress.preview(), Image.Image)
        if progress.step == 2 and progress.phase == "sampling":
            raise Interrupted

    request = plan(GenerationRequest(prompt="a cat", checkpoint="sd1", width=64, height=64, steps=5, seed=7))
    settings = Settings().with_overrides({"randn_source": "CPU"})
    on(models, SimulatedMemory(GIB, moves=False))
    (wanted,) = generate(request, models.shelf, settings, watch)
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        on(models, memory, level)
        (got,) = generate(request, models.shelf, settings, watch)
        assert not memory.present
    assert not got.complete and same(got, wanted)


def test_other_errors_are_not_tried_again(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def watch(progress: Progress) -> None:
        tries.append(progress)
        raise RuntimeError("no memory has to do with it")

    request = plan(GenerationRequest(prompt="a cat", checkpoint="sd1", width=64, height=64, steps=1, seed=7))
    on(models, SimulatedMemory(GIB, moves=False))
    with pytest.raises(RuntimeError, match="no memory has"):
        list(generate(request, models.shelf, Settings(), watch))
    assert len(tries) == 1


def test_what_is_written_is_read_over_when_pasted(models: Models) -> None:
    text = "a cat\nSteps: 1, Sampler: Euler, Seed: 7, Size: 64x64, VAE tiles: 512, "
    text += 'Memory fallback: "parts moved in turn, VAE"'
    assert parse(text)["Memory fallback"] == "parts moved in turn, VAE"
    assert not to_request_fields(parse(text)).unmapped


def test_what_a_request_asks_for() -> None:
    request = GenerationRequest(
        prompt="a AND b",
        checkpoint="x",
        seed=1,
        width=512,
        height=320,
        batch_size=3,
        hires=Hires(scale=2, upscaler="Lanczos"),
    )
    work = work_of(plan(request), Settings())
    assert (work.pictures, work.rows, work.width, work.height, work.encodes) == (3, 9, 1024, 640, True)
    assert work_of(plan(request), Settings().with_overrides({"batch_cond_uncond": False})).rows == 6
