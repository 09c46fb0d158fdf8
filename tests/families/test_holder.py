"""Which models stay loaded: those that fit, the longest unused go first, and never one whose file is another by now."""

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bench.checkpoints import save_original
from modules.families.family import Conditioning, TextOptions
from modules.families.footprint import footprint_of
from modules.families.footprint import size_of as size_of_network
from modules.families.formats import header_of
from modules.families.holder import Keeping, ModelHolder, size_in, size_of
from modules.families.levels import Work, rungs
from modules.families.residence import Residence
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.header import ModelFileError
from modules.runtime.memory import GIB, Memory
from tests.tiny import FP32, OTHER_HEADS, save_tiny, save_tiny_of, tiny_parts

NAMES = ("one", "two", "three")


class Machine(Memory):
    """With so much main memory beside the reserve, of which the models that live take theirs."""

    def __init__(self, free: int):
        super().__init__(torch.device("cpu"))
        self._free = free
        self.models: list[weakref.ref[Any]] = []

    def watch(self, model: Any) -> Any:
        self.models.append(weakref.ref(model))
        return model

    def total(self) -> int:
        return 10 * GIB  # so that 2 GiB stay free

    def free(self) -> int:
        alive = {id(model): model for reference in self.models if (model := reference()) is not None}
        return self._free + 2 * GIB - sum(map(size_of, alive.values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save_tiny(folder, f"{name}.safetensors", seed)
    return folder


def find(folder: Path, name: str) -> Checkpoint:
    return CheckpointLibrary([folder], folder / "cache.db").find(name)


def names(holder: ModelHolder) -> list[str]:
    return [checkpoint.model_name for checkpoint in holder.kept()]


def test_models_are_kept_and_differ(folder: Path) -> None:
    holder = ModelHolder(FP32)
    one = holder.get(find(folder, "one"))
    assert holder.get(find(folder, "one")) is one
    two = holder.get(find(folder, "two"))
    x, t, c = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), Conditioning(torch.randn(1, 77, 32))
    with torch.inference_mode():
        assert not torch.allclose(one.predict_eps(x, t, c), two.predict_eps(x, t, c))
    assert holder.get(find(folder, "one")) is one and names(holder) == ["two", "one"]
    holder.unload()
    assert names(holder) == [] and holder.get(find(folder, "one")) is not one


def test_the_longest_unused_goes_where_room_is_wanted(folder: Path) -> None:
    size = size_in(header_of(folder / "one.safetensors"), FP32)
    machine = Machine(2 * size + size // 2)  # room for two, and for a half
    holder = ModelHolder(FP32, host=machine)
    for name in NAMES:
        machine.watch(holder.get(find(folder, name)))
    assert names(holder) == ["two", "three"]
    machine.watch(holder.get(find(folder, "two")))
    machine.watch(holder.get(find(folder, "one")))
    assert names(holder) == ["two", "one"]
    assert sum(reference() is not None for reference in machine.models[:3]) == 1  # what was let go is gone


def test_where_only_one_fits_the_one_before_goes_before_the_next_is_read(folder: Path) -> None:
    size = size_in(header_of(folder / "one.safetensors"), FP32)
    machine = Machine(size + size // 2)
    holder = ModelHolder(FP32, host=machine)
    machine.watch(holder.get(find(folder, "one")))
    seen: list[bool] = []
    holder.get(find(folder, "two"), lambda fraction: seen.append(machine.models[0]() is None))
    assert seen and all(seen) and names(holder) == ["two"]


def test_the_one_at_work_stays_even_where_there_is_no_room(folder: Path) -> None:
    holder = ModelHolder(FP32, host=Machine(-GIB))
    one = holder.get(find(folder, "one"))
    assert holder.make_room(10 * GIB) == GIB
    holder.shrink_to(0)
    assert holder.get(find(folder, "one")) is one


def test_others_may_ask_for_room(folder: Path) -> None:
    machine = Machine(GIB)
    holder = ModelHolder(FP32, host=machine)
    sizes = [size_of(machine.watch(holder.get(find(folder, name)))) for name in NAMES]
    free = machine.free()
    assert holder.make_room(free) == free and names(holder) == list(NAMES)
    assert holder.make_room(free + 1) == free + sizes[0] and names(holder) == ["two", "three"]
    holder.shrink_to(sizes[1] + sizes[2])
    assert names(holder) == ["two", "three"]
    holder.shrink_to(sizes[2])
    assert names(holder) == ["three"]


@pytest.mark.parametrize(("most", "left"), [(1, ["three"]), (2, ["two", "three"]), (None, list(NAMES))])
def test_no_more_are_kept_than_the_user_wants(folder: Path, most: int | None, left: list[str]) -> None:
    holder = ModelHolder(FP32, keeping=lambda: Keeping(most))
    for name in NAMES:
        holder.get(find(folder, name))
    assert names(holder) == left


def test_a_smaller_number_counts_at_the_next_switch(folder: Path) -> None:
    keeping = Keeping(3)
    holder = ModelHolder(FP32, keeping=lambda: keeping)
    for name in NAMES:
        holder.get(find(folder, name))
    keeping = Keeping(1)
    holder.get(find(folder, "one"))
    assert names(holder) == ["one"]


def test_switches_leave_nothing_behind(folder: Path) -> None:
    holder = ModelHolder(FP32, keeping=lambda: Keeping(1))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for name in NAMES[:2]:
        holder.get(find(folder, name))
    before, resident = tensors(), psutil.Process().memory_info().rss
    alive = [weakref.ref(holder.get(find(folder, NAMES[number % 2]))) for number in range(10)]
    assert tensors() == before
    assert sum(reference() is not None for reference in alive) == 1
    assert psutil.Process().memory_info().rss < resident * 1.05


def test_a_replaced_file_is_loaded_anew(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "one.safetensors", seed=1)
    holder = ModelHolder(FP32)
    chosen = find(tmp_path, "one")
    before = holder.get(chosen)
    status = path.stat()
    save_tiny(tmp_path, "other.safetensors", seed=2).replace(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as large, and as old
    with pytest.raises(ModelFileError, match=r"one\.safetensors: changed since it was chosen"):
        holder.get(chosen)
    assert names(holder) == []
    assert holder.get(find(tmp_path, "one")) is not before and names(holder) == ["one"]


def test_a_changed_config_beside_the_file_counts(tmp_path: Path) -> None:
    path = save_tiny_of(tmp_path / "one.safetensors", "sd1", tiny_parts("sd1"))
    holder = ModelHolder(FP32)
    config = path.with_suffix(".yaml")
    sizes = "unet_config: {params: {num_heads: 4}}, cond_stage_config: {params: {heads: 2}}"
    config.write_text(f"model: {{params: {{parameterization: eps, {sizes}}}}}")
    before: Any = holder.get(find(tmp_path, "one"))
    config.write_text(f"model: {{params: {{parameterization: v, {sizes}}}}}")
    os.utime(config, (0, 0))
    after: Any = holder.get(find(tmp_path, "one"))
    assert (before.prediction, after.prediction) == ("epsilon", "v_prediction") and names(holder) == ["one"]


def test_a_deleted_file_is_told_and_forgotten(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "one.safetensors")
    chosen = find(tmp_path, "one")
    holder = ModelHolder(FP32)
    holder.get(chosen)
    assert holder.has(chosen)
    path.unlink()
    assert not holder.has(chosen)
    with pytest.raises(ModelFileError, match=r"one\.safetensors: is not there any more"):
        holder.get(chosen)
    assert names(holder) == []


def test_after_a_failed_load_the_next_one_works(tmp_path: Path) -> None:
    good = save_tiny(tmp_path, "good.safetensors")
    whole = good.read_bytes()
    (tmp_path / "broken.safetensors").write_bytes(whole[:-1000])
    bad = next(one for one in CheckpointLibrary([tmp_path], tmp_path / "cache.db").list() if one.problem)
    holder = ModelHolder(FP32)
    with pytest.raises(ModelFileError, match=r"broken\.safetensors"):
        holder.get(bad)
    holder.get(find(tmp_path, "good"))


def test_loading_tells_how_far_it_is_and_can_be_ended(folder: Path) -> None:
    told: list[tuple[str, float]] = []
    watched: list[float] = []
    holder = ModelHolder(FP32, lambda text, fraction: told.append((text, fraction)))
    holder.get(find(folder, "one"), watched.append)
    assert watched == sorted(watched) and len(watched) > 100 and watched[-1] == pytest.approx(1, abs=0.01)
    texts = [text for text, _ in told]
    assert texts[0].startswith("loading one, ") and any(": UNet, " in text for text in texts)
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    told.clear()
    holder.get(find(folder, "one"), watched.append)
    assert not told  # nothing to do

    class Enough(Exception):
        pass

    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise Enough

    with pytest.raises(Enough):
        holder.get(find(folder, "two"), stop)
    assert names(holder) == ["one"]
    holder.get(find(folder, "two"))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_size_is_known_before_it_is_loaded(tmp_path: Path, kind: Any) -> None:
    path = save_tiny_of(tmp_path / "model.safetensors", kind, tiny_parts(kind), more_ema=torch.zeros(1))
    model = ModelHolder(FP32).get(find(tmp_path, "model"))
    assert size_in(header_of(path), FP32) == pytest.approx(size_of(model), rel=0.01)


def test_a_unet_of_halves_stays_so_where_fp32_is_too_large_and_gives_the_same(tmp_path: Path) -> None:
    """SDXL on a CPU without bf16, with 12.7 GB of main memory."""
    parts = tiny_parts("sdxl")
    save_original(tmp_path / "xl.safetensors", "sdxl", parts, torch.float16, OTHER_HEADS)
    machine = Machine(GIB)
    machine.total = lambda: GIB  # type: ignore[method-assign]
    small, large = ModelHolder(FP32, host=machine), ModelHolder(FP32, host=Machine(GIB))
    stored: Any = small.get(find(tmp_path, "xl"))
    whole: Any = large.get(find(tmp_path, "xl"))
    others = sum(size_of_network(whole.components[name]) for name in whole.components if name != "unet")
    assert size_of(stored) - others < 0.7 * (size_of(whole) - others)
    assert size_in(header_of(tmp_path / "xl.safetensors"), stored.placement) == pytest.approx(size_of(stored), rel=0.1)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([5.0, 700.0])
    with torch.inference_mode():
        conditioning = whole.encode(["a cat", "a dog"], TextOptions())
        assert torch.equal(stored.predict(x, t, conditioning), whole.predict(x, t, conditioning))


def test_kept_models_go_where_a_run_needs_their_room(folder: Path) -> None:
    machine = Machine(GIB)
    holder = ModelHolder(FP32, host=machine)
    models = [machine.watch(holder.get(find(folder, name))) for name in NAMES]
    machine._free = 0  # others have taken the rest
    work = Work(pictures=1, rows=2, width=64, height=64)
    needed = rungs(footprint_of(models[2]), work, 8, moves=False)[0].needed - size_of(models[2])
    machine._free = needed - machine.free() - 1  # one byte is missing
    sizes = size_of(models[0])
    del models[:2]
    residence = Residence(machine, make_room=holder.make_room)
    residence.arrange(models[0], work)
    assert names(holder) == ["two", "three"] and machine.free() == needed - 1 + sizes
