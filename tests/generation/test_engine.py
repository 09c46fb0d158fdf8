"""The engine on a real tiny model: what it yields, how it ends early, and that a picture depends on its seed alone."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modules.families.loader import read_model
from modules.generation.engine import NotFinite, generate
from modules.generation.made import GeneratedImage
from modules.generation.plan import plan
from modules.generation.progress import Interrupted, Progress, Skipped, Stopped
from modules.generation.request import RESIZE_MODES, GenerationRequest, Hires, Init, Mask, Refiner
from modules.generation.shelf import Loaded, Shelf
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.settings.schema import Settings
from tests.tiny import FP32
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


@pytest.fixture(scope="module")
def checkpoint(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    library = CheckpointLibrary([tiny_folder], tmp_path_factory.mktemp("cache") / "models.db")
    return library.hashed(library.find("tiny"))


def request(**changes: Any) -> GenerationRequest:
    base = {"prompt": "a cat", "checkpoint": "tiny", "width": 64, "height": 64, "steps": 3, "seed": 7}
    return GenerationRequest(**{**base, **changes})


def run(wanted: GenerationRequest, model: Any, checkpoint: Checkpoint, watch: Any = lambda p: None, **settings: Any):
    return list(generate(plan(wanted), Shelf.of(model, checkpoint), Settings().with_overrides(settings), watch))


def pixels(image: GeneratedImage) -> Any:
    return np.asarray(image.image)


def test_every_picture_of_a_batch_is_the_picture_of_its_seed(tiny_model: Any, checkpoint: Checkpoint) -> None:
    together = run(request(batch_size=2, batch_count=2), tiny_model, checkpoint)
    assert [image.index for image in together] == [0, 1, 2, 3]
    assert [image.plan.seed for image in together] == [7, 8, 9, 10]
    alone = run(request(seed=9), tiny_model, checkpoint)[0]
    assert np.abs(pixels(together[2]).astype(int) - pixels(alone).astype(int)).max() <= 1
    assert together[2].infotext == alone.infotext


def test_progress_tells_every_step_once(tiny_model: Any, checkpoint: Checkpoint) -> None:
    seen: list[Progress] = []
    run(request(batch_count=2), tiny_model, checkpoint, seen.append)
    assert [(p.phase, p.batch, p.step) for p in seen] == [
        (phase, batch, step)
        for batch in (0, 1)
        for phase, step in (("encoding", 0), ("sampling", 1), ("sampling", 2), ("sampling", 3), ("decoding", 3))
    ]


def test_previews_are_pictures_of_the_latent(tiny_model: Any, checkpoint: Checkpoint) -> None:
    sizes = []

    def watch(progress: Progress) -> None:
        if progress.preview:
            sizes.append(progress.preview().size)

    run(request(batch_size=3, width=128), tiny_model, checkpoint, watch)
    assert sizes == [(32, 16)] * 3  # two by two latents of 16 by 8


@pytest.mark.parametrize("at", [1, 2])
def test_interrupt_keeps_what_there_is(at: int, tiny_model: Any, checkpoint: Checkpoint) -> None:
    def watch(progress: Progress) -> None:
        if progress.step == at:
            raise Interrupted

    images = run(request(batch_count=3), tiny_model, checkpoint, watch)
    assert [(image.index, image.complete) for image in images] == [(0, False)]


def test_interrupt_before_the_first_step_gives_nothing(tiny_model: Any, checkpoint: Checkpoint) -> None:
    def watch(progress: Progress) -> None:
        raise Interrupted

    assert run(request(), tiny_model, checkpoint, watch) == []


def test_skip_goes_on_with_the_next_batch(tiny_model: Any, checkpoint: Checkpoint) -> None:
    def watch(progress: Progress) -> None:
        if progress.batch == 0 and progress.step == 1:
            raise Skipped

    images = run(request(batch_count=2), tiny_model, checkpoint, watch)
    assert [(image.index, image.complete) for image in images] == [(0, False), (1, True)]


def test_stop_passes_through(tiny_model: Any, checkpoint: Checkpoint) -> None:
    def watch(progress: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(request(), tiny_model, checkpoint, watch)


def test_values_that_are_no_numbers_give_no_black_picture(
    tiny_model: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((1, 3, 64, 64), float("nan"))
    monkeypatch.setattr(tiny_model.components["vae"], "decode", lambda z, return_dict: (broken,))
    with pytest.raises(NotFinite, match="tiny gave values that are not numbers"):
        run(request(), tiny_model, checkpoint)


def test_cfg_1_asks_the_model_once_and_equals_the_long_way(
    tiny_model: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    predict = tiny_model.predict

    def counted(x: torch.Tensor, t: torch.Tensor, c: Any, beside: Any) -> torch.Tensor:
        batches.append(len(x))
        return predict(x, t, c, beside)  # type: ignore[no-any-return]

    monkeypatch.setattr(tiny_model, "predict", counted)
    short = run(request(cfg_scale=1), tiny_model, checkpoint)[0]
    assert batches == [1, 1, 1]
    almost = run(request(cfg_scale=1.0000001), tiny_model, checkpoint)[0]
    assert batches[3:] == [2, 2, 2]
    assert np.abs(pixels(short).astype(int) - pixels(almost).astype(int)).max() <= 1


def test_prompts_of_different_lengths_go_separately(tiny_model: Any, checkpoint: Checkpoint) -> None:
    long = "a cat, " * 60
    assert len(run(request(negative_prompt=long), tiny_model, checkpoint)) == 1


def test_inference_mode_does_not_leak_to_the_caller(tiny_model: Any, checkpoint: Checkpoint) -> None:
    pictures = generate(plan(request()), Shelf.of(tiny_model, checkpoint), Settings(), lambda progress: None)
    next(pictures)
    assert not torch.is_inference_mode_enabled()


def test_the_infotext_says_how(tiny_model: Any, checkpoint: Checkpoint) -> None:
    text = run(request(negative_prompt="dog", sampler="Euler a", cfg_scale=7.5), tiny_model, checkpoint)[0].infotext
    assert text.startswith(
        "a cat\nNegative prompt: dog\nSteps: 3, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.5, Seed: 7, "
        f"Size: 64x64, Model hash: {checkpoint.shorthash}, Model: tiny, Version: easel-v"
    )


def test_the_models_of_a_refiner_and_of_a_hires_pass_take_over(tiny_model: Any, checkpoint: Checkpoint) -> None:
    loaded: list[str] = []
    others = {name: replace(checkpoint, name=name) for name in ("tiny", "fine", "large")}

    def load(name: str) -> Loaded:
        loaded.append(name)
        return Loaded(tiny_model, others[name])

    shelf = Shelf(load, others.__getitem__)
    wanted = request(refiner=Refiner(checkpoint="fine", switch_at=0.5), batch_count=2)
    pictures = list(generate(plan(wanted), shelf, Settings(), lambda progress: None))
    assert loaded == ["tiny", "fine", "tiny", "fine"]
    assert all("Model: tiny, " in p.infotext for p in pictures)
    assert all(f"Refiner: fine [{checkpoint.shorthash}], Refiner switch at: 0.5" in p.infotext for p in pictures)

    loaded.clear()
    wanted = request(hires=Hires(checkpoint="large", scale=1.5, denoising_strength=0.5))
    seen: list[Progress] = []
    (picture,) = generate(plan(wanted), shelf, Settings(), seen.append)
    assert loaded == ["tiny", "large"] and picture.image.size == (96, 96)
    assert "Hires checkpoint: large [" in picture.infotext
    sampling = [p for p in seen if p.phase == "sampling"]
    assert [p.step for p in sampling] == [1, 2, 3, 4, 5, 6] and {p.steps for p in sampling} == {6}


def test_a_hires_pass_that_is_interrupted_leaves_the_enlarged_picture(tiny_model: Any, checkpoint: Checkpoint) -> None:
    def watch(progress: Progress) -> None:
        if progress.phase == "sampling" and progress.step == 5:
            raise Interrupted

    (picture,) = run(request(hires=Hires(scale=1.5)), tiny_model, checkpoint, watch)
    assert picture.image.size == (96, 96) and not picture.complete


def test_strength_0_changes_nothing_in_the_second_pass(tiny_model: Any, checkpoint: Checkpoint) -> None:
    wanted = request(hires=Hires(upscaler="Latent (nearest)", scale=2, denoising_strength=0))
    (picture,) = run(wanted, tiny_model, checkpoint)
    assert picture.image.size == (128, 128)


def test_an_unknown_upscaler_fails_with_its_name(tiny_model: Any, checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no upscaler 'Enormous'"):
        run(request(hires=Hires(upscaler="Enormous")), tiny_model, checkpoint)


def test_img2img_of_a_size_that_is_not_the_requests(tiny_model: Any, checkpoint: Checkpoint) -> None:
    picture = Image.new("RGBA", (50, 41), (200, 10, 10, 128))
    mask = Image.new("L", (25, 20))
    mask.paste(255, (5, 4, 15, 12))
    shelf = replace(Shelf.of(tiny_model, checkpoint), picture={"a" * 64: picture, "b" * 64: mask}.__getitem__)
    for mode in RESIZE_MODES:
        wanted = request(init=Init(images=("a" * 64,), resize_mode=mode))
        (made,) = generate(plan(wanted), shelf, Settings(), lambda progress: None)
        assert made.image.size == (64, 64)
    for only_masked in (False, True):
        wanted = request(init=Init(images=("a" * 64,), mask=Mask(image="b" * 64, only_masked=only_masked)))
        (made,) = generate(plan(wanted), shelf, Settings(), lambda progress: None)
        assert made.image.size == ((50, 41) if only_masked else (64, 64))


def test_nothing_keeps_a_model_when_the_refiner_takes_over(checkpoint: Checkpoint, tiny_folder: Path) -> None:
    """Two SDXL models do not fit into eleven gigabytes."""
    names = {name: replace(checkpoint, name=name) for name in ("tiny", "fine")}
    alive: list[weakref.ref[Any]] = []

    def load(name: str) -> Loaded:
        gc.collect()
        assert not any(reference() for reference in alive)
        model = read_model(tiny_folder / "tiny.safetensors", FP32)
        alive.append(weakref.ref(model))
        return Loaded(model, names[name])

    wanted = request(refiner=Refiner(checkpoint="fine", switch_at=0.5), hires=Hires(scale=1.5), sampler="DPM++ SDE")
    settings = Settings().with_overrides({"hires_fix_refiner_pass": "both passes"})
    assert len(list(generate(plan(wanted), Shelf(load, names.__getitem__), settings, lambda progress: None))) == 1
    assert len(alive) == 4


def test_masks_of_another_size_are_told_and_of_other_proportions_refused(
    tiny_model: Any, checkpoint: Checkpoint
) -> None:
    pictures = {"a" * 64: Image.new("RGB", (64, 64)), "b" * 64: Image.new("L", (32, 32), 255)}
    shelf = replace(Shelf.of(tiny_model, checkpoint), picture=pictures.__getitem__)
    wanted = request(steps=1, init=Init(images=("a" * 64,), mask=Mask(image="b" * 64)))
    (made,) = generate(plan(wanted), shelf, Settings(), lambda progress: None)
    assert made.warnings == ("the mask is 32×32, its picture 64×64: the mask was resized",)
    pictures["b" * 64] = Image.new("L", (32, 64), 255)
    with pytest.raises(ValueError, match="draw the mask on a picture of the same proportions"):
        list(generate(plan(wanted), shelf, Settings(), lambda progress: None))


def test_small_init_images_are_enlarged_by_the_upscaler_of_the_settings(
    tiny_model: Any, checkpoint: Checkpoint
) -> None:
    asked: list[str] = []

    def upscaler(name: str, settings: Settings) -> Any:
        asked.append(name)
        return lambda image, width, height: Image.new("RGB", (width, height), "red")

    shelf = replace(Shelf.of(tiny_model, checkpoint), upscaler=upscaler, picture=lambda id: Image.new("RGB", (32, 32)))
    wanted = request(init=Init(images=("a" * 64,), denoising_strength=0))
    settings = Settings().with_overrides({"upscaler_for_img2img": "Lanczos", "img2img_fix_steps": True})
    (red,) = generate(plan(wanted), shelf, settings, lambda progress: None)
    (black,) = generate(
        plan(wanted),
        replace(shelf, upscaler=None),
        Settings().with_overrides({"img2img_fix_steps": True}),
        lambda p: None,
    )
    assert asked == ["Lanczos"] and np.abs(pixels(red).astype(int) - pixels(black).astype(int)).max() > 0


def test_init_pictures_are_made_ready_once_for_all_batches(tiny_model: Any, checkpoint: Checkpoint) -> None:
    taken: list[str] = []

    def picture(id: str) -> Image.Image:
        taken.append(id)
        return Image.new("RGB", (70, 50), "red")

    shelf = replace(Shelf.of(tiny_model, checkpoint), picture=picture)
    wanted = request(init=Init(images=("a" * 64,), mask=Mask(image="b" * 64)), batch_count=3, steps=2)
    assert len(list(generate(plan(wanted), shelf, Settings(), lambda progress: None))) == 3
    assert taken == ["a" * 64, "b" * 64]
