"""The engine on a real tiny model: what it yields, how it ends early, and that a picture depends on its seed alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.generation.engine import GeneratedImage, NotFinite, generate
from modules.generation.plan import plan
from modules.generation.progress import Interrupted, Progress, Skipped, Stopped
from modules.generation.request import GenerationRequest
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.settings.schema import Settings
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
    return list(generate(plan(wanted), model, checkpoint, Settings().with_overrides(settings), watch))


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
    predict = tiny_model.predict_eps

    def counted(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return predict(x, t, c)  # type: ignore[no-any-return]

    monkeypatch.setattr(tiny_model, "predict_eps", counted)
    short = run(request(cfg_scale=1), tiny_model, checkpoint)[0]
    assert batches == [1, 1, 1]
    almost = run(request(cfg_scale=1.0000001), tiny_model, checkpoint)[0]
    assert batches[3:] == [2, 2, 2]
    assert np.abs(pixels(short).astype(int) - pixels(almost).astype(int)).max() <= 1


def test_prompts_of_different_lengths_go_separately(tiny_model: Any, checkpoint: Checkpoint) -> None:
    long = "a cat, " * 60
    assert len(run(request(negative_prompt=long), tiny_model, checkpoint)) == 1


def test_inference_mode_does_not_leak_to_the_caller(tiny_model: Any, checkpoint: Checkpoint) -> None:
    pictures = generate(plan(request()), tiny_model, checkpoint, Settings(), lambda progress: None)
    next(pictures)
    assert not torch.is_inference_mode_enabled()


def test_the_infotext_says_how(tiny_model: Any, checkpoint: Checkpoint) -> None:
    text = run(request(negative_prompt="dog", sampler="Euler a", cfg_scale=7.5), tiny_model, checkpoint)[0].infotext
    assert text.startswith(
        "a cat\nNegative prompt: dog\nSteps: 3, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.5, Seed: 7, "
        f"Size: 64x64, Model hash: {checkpoint.shorthash}, Model: tiny, Version: easel-v"
    )
