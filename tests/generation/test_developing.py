"""Batches that are decoded while the next one is sampled: the same pictures as one after the other, none lost or made
twice, whatever happens meanwhile. On the CPU, with the setting that wants it there too."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench.checkpoints import vae_tensors
from modules.families.footprint import footprint_of
from modules.families.levels import Work, needed_beside, rungs
from modules.families.residence import Residence
from modules.generation.engine import NotFinite, generate
from modules.generation.made import Developing, GeneratedImage
from modules.generation.plan import plan
from modules.generation.progress import Interrupted, Progress, Skipped, Stopped
from modules.generation.request import GenerationRequest, Hires, Init, Loopback, Mask
from modules.imaging.resize import lanczos
from modules.jobs.saving import Saving
from modules.library.networks import NetworkLibrary
from modules.runtime.memory import SimulatedMemory
from modules.settings.schema import Settings
from tests.generation.test_families import INIT, MASK, Models
from tests.tiny import save_tiny_of, tiny_parts

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_of(folder / "sd1.safetensors", "sd1", tiny_parts("sd1"))
    for name in ("VAE", "lora"):
        (folder / name).mkdir()
    save_file({f"{TO_K}.diff": torch.randn(32, 32)}, folder / "lora" / "one.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in vae_tensors(tiny_parts("sd1", seed=5).vae).items()}
    save_file(tensors, folder / "VAE" / "other.safetensors")
    models = Models(folder)
    library = NetworkLibrary({"lora": [folder / "lora"]}, folder / "networks.db")
    models.shelf = replace(models.shelf, networks=library, upscaler=lambda name, settings: lanczos)
    yield models


def request(**changes: Any) -> GenerationRequest:
    base = {"prompt": "a cat", "checkpoint": "sd1", "width": 64, "height": 64, "steps": 2, "seed": 7}
    return GenerationRequest(**{**base, "batch_size": 2, "batch_count": 3, **changes})


class Kept:
    """What is kept of a run, as the worker does it."""

    def __init__(self) -> None:
        self.pictures: list[GeneratedImage] = []
        self.threads: set[str] = set()
        self.late = 0  # pictures that came undecoded

    def run(self, models: Models, wanted: GenerationRequest, watch: Any = lambda p: None, **settings: Any) -> "Kept":
        chosen = Settings().with_overrides({"decode_beside_sampling": "Always", **settings})
        made = generate(plan(wanted), models.shelf, chosen, watch)
        with Saving(lambda one: self.pictures.append(one.developed())) as saving, closing(made):
            for one in made:
                self.late += isinstance(one, Developing)
                saving.hand_over(one)
        return self

    @property
    def all(self) -> list[Any]:
        return [(one.index, one.infotext, one.complete, one.warnings, one.image.tobytes()) for one in self.pictures]


HALF = Mask(image=MASK, content="original")
CASES: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"init": Init(images=(INIT,), denoising_strength=0.6)},
    "inpainting": {"init": Init(images=(INIT,), denoising_strength=0.6, mask=HALF)},
    "hires fix": {"hires": Hires(scale=2, denoising_strength=0.7)},
    "another VAE": {"settings": {"sd_vae": "other.safetensors"}},
    "LoRA": {"prompt": "a cat <lora:one:1>"},
    "tiling, merged otherwise in the hires pass": {
        "hires": Hires(scale=2, denoising_strength=0.7),
        "settings": {"tiling": True, "token_merging_ratio_hr": 0.5},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_pictures_are_those_that_are_made_one_after_the_other(name: str, models: Models) -> None:
    case = dict(CASES[name])
    settings = case.pop("settings", {})
    wanted = request(**case)
    before = set(threading.enumerate())
    one = Kept().run(models, wanted, decode_beside_sampling="Never", **settings)
    both = Kept().run(models, wanted, **settings)
    assert (one.late, both.late) == (0, 4)  # the last batch has none beside it
    assert [index for index, *_ in both.all] == list(range(6))
    assert both.all == one.all
    assert set(threading.enumerate()) == before


def test_every_batch_may_have_other_networks(models: Models) -> None:
    wanted = plan(request())
    images = tuple(
        replace(one, prompt="a cat <lora:one:1>") if one.batch == 1 else replace(one) for one in wanted.images
    )
    found = []
    for how in ("Never", "Always"):
        settings = Settings().with_overrides({"decode_beside_sampling": how})
        kept: list[Any] = []
        made = generate(replace(wanted, images=images), models.shelf, settings, lambda progress: None)
        with Saving(lambda one, kept=kept: kept.append(one.developed())) as saving, closing(made):
            for one in made:
                saving.hand_over(one)
        found.append([(one.index, one.infotext, one.image.tobytes()) for one in kept])
    assert found[0] == found[1]


def test_a_batch_is_decoded_while_the_next_is_sampled(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, decoded = threading.Event(), threading.Event()
    vae = models.shelf.load("sd1").model.vae
    decode = vae.decode

    def waiting(latents: Any) -> Any:
        if threading.current_thread().name.startswith("saving") and not decoded.is_set():
            assert sampling.wait(30)
            decoded.set()
        return decode(latents)

    def watch(progress: Progress) -> None:
        if (progress.batch, progress.phase, progress.step) == (1, "sampling", 1):
            assert not decoded.is_set()
            sampling.set()
            assert decoded.wait(30)

    monkeypatch.setattr(vae, "decode", waiting)
    kept = Kept().run(models, request(), watch)
    assert [one.index for one in kept.pictures] == list(range(6))
    assert decoded.is_set()


@pytest.mark.parametrize("error, size", [(torch.OutOfMemoryError("out of memory"), 4), (MemoryError(), 1)])
def test_without_memory_for_both_the_batch_is_decoded_alone(
    error: Exception, size: int, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(batch_size=size)
    expected = Kept().run(models, wanted, decode_beside_sampling="Never").all
    vae = models.shelf.load("sd1").model.vae
    decode, threads = vae.decode, list[str]()

    def failing(latents: Any) -> Any:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise error
        return decode(latents)

    monkeypatch.setattr(vae, "decode", failing)
    # The engine waits for the first attempt, so that it is made in the other thread.
    kept = Kept().run(models, wanted, lambda p: until(lambda: bool(threads) or not p.batch))
    assert threads[0].startswith("saving")
    assert len(threads) == 4  # one of them twice
    assert kept.all == expected


def until(true: Any) -> None:
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_the_next_batch_that_finds_no_memory_waits_and_is_not_made_with_less(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Kept().run(models, request(), decode_beside_sampling="Never").all
    failed = []

    def watch(progress: Progress) -> None:
        if (progress.batch, progress.step) == (1, 1) and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("out of memory")

    kept = Kept().run(models, request(), watch)
    assert failed and kept.all == expected
    assert kept.late == 2  # from then on none is decoded beside another


@pytest.mark.parametrize("stop, indices", [(Interrupted, [0, 1, 2, 3]), (Skipped, [0, 1, 2, 3, 4, 5])])
def test_what_is_stopped_early_leaves_the_batch_before_whole(stop: Any, indices: list[int], models: Models) -> None:
    def watch(progress: Progress) -> None:
        if (progress.batch, progress.step, progress.phase) == (1, 1, "sampling"):
            raise stop

    kept = Kept().run(models, request(), watch)
    assert [one.index for one in kept.pictures] == indices
    assert [one.complete for one in kept.pictures] == [index not in (2, 3) for index in indices]


def test_the_end_of_the_program_keeps_what_was_sampled(models: Models) -> None:
    def watch(progress: Progress) -> None:
        if (progress.batch, progress.step) == (1, 1):
            raise Stopped

    kept = Kept()
    with pytest.raises(Stopped):
        kept.run(models, request(), watch)
    assert [one.index for one in kept.pictures] == [0, 1]


def test_whoever_breaks_off_between_batches_keeps_what_found_no_memory(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = models.shelf.load("sd1").model.vae
    decode, calls = vae.decode, list[int]()

    def failing(latents: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return decode(latents)

    monkeypatch.setattr(vae, "decode", failing)
    settings, kept = Settings().with_overrides({"decode_beside_sampling": "Always"}), list[GeneratedImage]()
    made = generate(plan(request()), models.shelf, settings, lambda progress: None)
    with Saving(lambda one: kept.append(one.developed())) as saving, closing(made):
        for one in made:
            saving.hand_over(one)
            if one.index == 1:
                break
    assert [one.index for one in kept] == [0, 1] and len(calls) == 2


def test_the_memory_for_both_is_counted(models: Models) -> None:
    model, work = models.shelf.load("sd1").model, Work(pictures=2, rows=4, width=64, height=64)
    footprint = footprint_of(model)
    (whole, *_) = rungs(footprint, work, 8, moves=False)
    both = needed_beside(whole, footprint, work, 8)
    assert both > whole.needed + footprint.decode_pixel * 64 * 64
    for limit, suffices in ((both, True), (both - 1, False)):
        residence = Residence(SimulatedMemory(limit, moves=False))
        residence.arrange(model, work)
        assert residence.has_room_beside(work) is suffices
        residence.settle()
        assert not residence.has_room_beside(work)  # nothing is going on


def test_a_run_that_is_closed_first_decodes_what_is_left(models: Models) -> None:
    settings = Settings().with_overrides({"decode_beside_sampling": "Always"})
    made = generate(plan(request()), models.shelf, settings, lambda progress: None)
    first = next(made)
    made.close()
    assert isinstance(first, Developing)
    assert first.developed().image.size == (64, 64)


def test_values_that_are_no_numbers_fail_the_run(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = models.shelf.load("sd1").model.vae
    monkeypatch.setattr(vae, "decode", lambda latents: torch.full((len(latents), 3, 64, 64), float("nan")))
    kept = Kept()
    with pytest.raises(NotFinite, match="sd1 gave values that are not numbers"):
        kept.run(models, request())
    assert kept.pictures == []


def test_what_goes_on_from_its_own_pictures_is_not_put_off(models: Models) -> None:
    init = Init(images=(INIT,), denoising_strength=0.6, script=Loopback(loops=2))
    kept = Kept().run(models, request(init=init, batch_size=1, batch_count=2))
    assert kept.late == 0 and kept.pictures


def test_automatic_leaves_a_processor_alone(models: Models) -> None:
    assert Kept().run(models, request(), decode_beside_sampling="Automatic").late == 0


def test_large_batches_are_decoded_at_once(models: Models) -> None:
    assert Kept().run(models, request(batch_size=5, batch_count=2)).late == 0
