"""SD upscale and Loopback on a real tiny model: what is run from which picture, and what is left when it ends early.
That the numbers are A1111's is in test_golden_cases.py."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modules.generation import img2img_scripts
from modules.generation.engine import generate
from modules.generation.made import GeneratedImage
from modules.generation.plan import plan
from modules.generation.progress import Interrupted, Progress, Skipped
from modules.generation.request import GenerationRequest, Init, Loopback, Mask, SdUpscale
from modules.generation.shelf import Shelf
from modules.generation.steps import strengths
from modules.library.checkpoints import CheckpointLibrary
from modules.postprocess.upscale import PLAIN_UPSCALERS, upscale
from modules.settings.schema import Settings
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

PICTURE, MASK = "a" * 64, "b" * 64
Run = Callable[..., list[GeneratedImage]]


@pytest.fixture(scope="module")
def shelf(tiny_folder: Path, tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    library = CheckpointLibrary([tiny_folder], tmp_path_factory.mktemp("cache") / "models.db")
    noise = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    mask = Image.new("L", (56, 56))
    mask.paste(255, (20, 16, 40, 40))
    pictures = {PICTURE: Image.fromarray(noise).resize((56, 56)), MASK: mask}
    return replace(
        Shelf.of(tiny_model, library.hashed(library.find("tiny"))),
        picture=pictures.__getitem__,
        enlarger=lambda name, settings: lambda image, scale: upscale(image, scale, PLAIN_UPSCALERS[name]),
    )


def request(script: Any, mask: Mask | None = None, strength: float = 0.6, **changes: Any) -> GenerationRequest:
    base = {"prompt": "a cat", "checkpoint": "tiny", "width": 64, "height": 64, "steps": 3, "seed": 7, "cfg_scale": 1}
    init = Init(images=(PICTURE,), denoising_strength=strength, script=script, mask=mask)
    return GenerationRequest(**{**base, "init": init, **changes})


def made(
    wanted: GenerationRequest,
    shelf: Shelf,
    watch: Any = lambda progress: None,
    done: Collection[int] = (),
    **settings: Any,
) -> list[GeneratedImage]:
    return list(generate(plan(wanted, done), shelf, Settings().with_overrides(settings), watch))


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB")).astype(int)


def apart(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def at(step: int, end: type[Exception]) -> Callable[[Progress], None]:
    """Ends once, at a step of the first batch."""
    left = [end]

    def watch(progress: Progress) -> None:
        if left and progress.phase == "sampling" and progress.step == step and progress.batch == 0:
            raise left.pop()

    return watch


# --- SD upscale: 56×56 doubled is 112×112, in tiles of 64 with 16 of overlap: 2 × 2 of them, of 2 steps each ----------

TILES = SdUpscale(overlap=16, upscaler="Lanczos", scale=2)


def test_tiles_have_seeds_of_their_own_whatever_the_batch(shelf: Shelf) -> None:
    (single,) = made(request(TILES), shelf)
    (batched,) = made(request(TILES, batch_size=3), shelf)
    assert single.image.size == (112, 112) and single.complete and apart(single.image, batched.image) <= 1
    assert single.infotext == batched.infotext and "Seed: 7, Size: 64x64" in single.infotext
    assert "SD upscale overlap: 16, SD upscale upscaler: Lanczos" in single.infotext
    # The last tile alone: an img2img of its part of the enlarged picture.
    corner = shelf.picture(PICTURE).resize((112, 112), Image.Resampling.LANCZOS).crop((48, 48, 112, 112))
    alone = request(None, seed=7 + 3)
    (tile,) = made(alone, replace(shelf, picture={PICTURE: corner}.__getitem__))
    assert apart(single.image.crop((64, 64, 112, 112)), tile.image.crop((16, 16, 64, 64))) <= 1


def test_every_round_is_a_picture_from_the_next_seed(shelf: Shelf) -> None:
    both = made(request(TILES, batch_count=2, steps=1), shelf)
    assert [(one.index, one.plan.seed, one.image.size) for one in both] == [(0, 7, (112, 112)), (1, 8, (112, 112))]
    assert "Seed: 8," in both[1].infotext
    (later,) = made(request(TILES, seed=8, steps=1), shelf)
    assert apart(later.image, both[1].image) == 0
    (resumed,) = made(request(TILES, batch_count=2, steps=1), shelf, done={0})
    assert resumed.index == 1 and apart(resumed.image, both[1].image) == 0


def test_tiles_count_their_steps_as_one(shelf: Shelf) -> None:
    seen: list[Progress] = []
    made(request(TILES, batch_size=2, batch_count=2), shelf, seen.append)
    sampling = [(p.batch, p.step) for p in seen if p.phase == "sampling"]
    assert sampling == [(batch, step) for batch in (0, 1) for step in range(1, 5)]  # 2 runs of 2 steps
    assert {(p.steps, p.batches) for p in seen if p.phase == "sampling"} == {(4, 2)}


def test_tiles_that_are_not_painted_stay_enlarged(shelf: Shelf) -> None:
    (whole,) = made(request(TILES), shelf)
    (cut,) = made(request(TILES), shelf, at(5, Interrupted))  # in the third tile
    enlarged = shelf.picture(PICTURE).resize((112, 112), Image.Resampling.LANCZOS)
    assert not cut.complete and cut.infotext == whole.infotext
    assert apart(cut.image.crop((0, 0, 112, 48)), whole.image.crop((0, 0, 112, 48))) == 0
    assert apart(cut.image.crop((64, 64, 112, 112)), enlarged.crop((64, 64, 112, 112))) == 0
    assert made(request(TILES), shelf, raising(Interrupted)) == []


def test_skip_is_for_a_tile(shelf: Shelf) -> None:
    (whole,) = made(request(TILES), shelf)
    (skipped,) = made(request(TILES), shelf, at(1, Skipped))
    assert not skipped.complete
    assert apart(skipped.image.crop((64, 64, 112, 112)), whole.image.crop((64, 64, 112, 112))) == 0
    assert apart(skipped.image.crop((0, 0, 48, 48)), whole.image.crop((0, 0, 48, 48))) > 0


def test_no_upscaler_leaves_the_size(shelf: Shelf) -> None:
    (picture,) = made(request(SdUpscale(overlap=16, scale=3), steps=1), shelf)
    assert picture.image.size == (56, 56)


def test_an_upscaler_that_is_not_there_fails_with_its_name(shelf: Shelf) -> None:
    wanted = request(SdUpscale(upscaler="Enormous", overlap=8))
    with pytest.raises(ValueError, match="no upscaler 'Enormous'"):
        made(wanted, replace(shelf, enlarger=Shelf.enlarger))


def test_too_many_tiles_are_refused_before_they_are_cut(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(img2img_scripts, "MAX_TILED_PIXELS", 2**20)
    with pytest.raises(ValueError, match="112×112 pixels takes 2401 tiles of 64×64: too many"):
        made(request(SdUpscale(overlap=63, upscaler="Lanczos", scale=2)), shelf)


# --- Loopback --------------------------------------------------------------------------------------------------------

LOOPS = Loopback(loops=3, final_denoising_strength=0.2, curve="Linear")  # 0.6, 0.4, 0.2: 2, 2 and 1 steps of 3


def test_every_loop_is_an_img2img_of_the_picture_before(shelf: Shelf) -> None:
    wanted = request(LOOPS)
    pictures = made(wanted, shelf)
    assert [(one.index, one.plan.seed) for one in pictures] == [(0, 7), (1, 8), (2, 9)]
    before = shelf.picture(PICTURE)
    for one, strength in zip(pictures, strengths(wanted), strict=True):
        stocked = replace(shelf, picture={PICTURE: before}.__getitem__)
        (alone,) = made(request(None, strength=strength, seed=one.plan.seed), stocked)
        assert apart(alone.image, one.image) == 0
        before = one.image
    (text,) = {one.infotext for one in pictures}
    assert "Seed: 7, " in text and "Denoising strength: 0.6, " in text
    assert "Final denoising strength: 0.2, Denoising curve: Linear" in text


def test_every_round_begins_anew(shelf: Shelf) -> None:
    pictures = made(request(LOOPS, batch_count=2), shelf)
    assert [(one.index, one.plan.batch, one.plan.seed) for one in pictures] == [
        (index, index // 3, 7 + index) for index in range(6)
    ]
    again = made(request(LOOPS, seed=10), shelf)
    assert [apart(a.image, b.image) for a, b in zip(pictures[3:], again, strict=True)] == [0, 0, 0]
    assert {one.infotext for one in pictures[3:]} == {again[0].infotext}


def test_loops_that_were_made_are_walked_again_and_not_given_twice(shelf: Shelf) -> None:
    pictures = made(request(LOOPS, batch_count=2), shelf)
    rest = made(request(LOOPS, batch_count=2), shelf, done={0, 1, 2, 3, 4})
    assert [one.index for one in rest] == [5] and rest[0].infotext == pictures[5].infotext
    assert apart(rest[0].image, pictures[5].image) == 0


def test_loops_count_their_steps_as_one(shelf: Shelf) -> None:
    seen: list[Progress] = []
    made(request(LOOPS, batch_count=2), shelf, seen.append)
    sampling = [(p.batch, p.step) for p in seen if p.phase == "sampling"]
    assert sampling == [(batch, step) for batch in (0, 1) for step in range(1, 6)]
    assert {(p.steps, p.batches) for p in seen} == {(5, 2)}


def test_an_interrupt_keeps_the_loops_so_far(shelf: Shelf) -> None:
    pictures = made(request(LOOPS, batch_count=2), shelf, at(3, Interrupted))
    assert [(one.index, one.complete) for one in pictures] == [(0, True), (1, False)]
    assert made(request(LOOPS), shelf, raising(Interrupted)) == []


def test_skip_goes_on_with_the_next_round(shelf: Shelf) -> None:
    pictures = made(request(LOOPS, batch_count=2), shelf, at(3, Skipped))
    assert [(one.index, one.complete) for one in pictures] == [
        (0, True), (1, False), (3, True), (4, True), (5, True),
    ]  # fmt: skip


def test_a_mask_holds_in_every_loop_and_is_filled_in_the_first_only(shelf: Shelf) -> None:
    mask = Mask(image=MASK, content="latent nothing", blur_x=0, blur_y=0, only_masked=True, padding=8)
    pictures = made(request(LOOPS, mask), shelf)
    original = shelf.picture(PICTURE)
    for one in pictures:
        assert one.image.size == original.size and "Masked content: latent nothing" in one.infotext
        assert apart(one.image.crop((0, 0, 19, 56)), original.crop((0, 0, 19, 56))) == 0
        assert apart(one.image.crop((20, 16, 40, 40)), original.crop((20, 16, 40, 40))) > 0
    stocked = replace(shelf, picture={PICTURE: pictures[0].image, MASK: shelf.picture(MASK)}.__getitem__)
    kept = mask.model_copy(update={"content": "original"})
    (second,) = made(request(None, kept, strength=0.4, seed=8), stocked)
    assert apart(second.image, pictures[1].image) == 0


def test_all_loops_have_the_prompt_of_the_first(shelf: Shelf) -> None:
    from modules.generation.plan import Texts

    texts = Texts(wildcards=lambda name: tuple(f"word{number}" for number in range(1000)))
    images = plan(request(LOOPS, prompt="__x__", batch_count=2), texts=texts).images
    assert len({one.prompt for one in images[:3]}) == 1 and len({one.prompt for one in images}) == 2


def test_variations_keep_their_seed_while_the_first_goes_on() -> None:
    images = plan(request(LOOPS, variation_strength=0.5, variation_seed=3)).images
    assert [(one.seed, one.variation_seed) for one in images] == [(7, 3), (8, 3), (9, 3)]


def raising(end: type[Exception]) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        raise end

    return watch
