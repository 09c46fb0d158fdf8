"""Nothing in the loop waits for the device: every number that is read from it costs a stop of its queue. Counted on the
CPU by the one operation that reads numbers."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modules.diffusion.names import SAMPLER_INFOS
from modules.generation.engine import generate
from modules.generation.guide import Guide
from modules.generation.plan import plan
from modules.generation.request import Init, Mask, Refiner
from modules.generation.shelf import Shelf
from modules.library.checkpoints import Checkpoint
from modules.settings.schema import Settings
from tests.generation.test_engine import checkpoint as checkpoint
from tests.generation.test_engine import request
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

# In inference mode, in which pictures are made, `item` is seen as such.
READS = tuple(f"aten.{name}.default" for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero"))


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += str(func) in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_reading_is_seen(mode: Any):
    with Reads() as reads, mode():
        assert torch.ones(()) > 0
        float(torch.ones(()))
        torch.ones(()).item()
    assert reads.count.total() == 3


SAMPLERS = [info.name for info in SAMPLER_INFOS if not info.adaptive]


@pytest.fixture
def reads(tiny_model: Any, checkpoint: Checkpoint) -> Any:
    def reads(settings: dict[str, Any], **changes: Any) -> int:
        wanted = plan(request(**changes))
        pictures = {"a" * 64: Image.new("RGB", (64, 64), "red"), "b" * 64: Image.new("L", (64, 64), 255)}
        shelf = replace(Shelf.of(tiny_model, checkpoint), picture=pictures.__getitem__)
        with Reads() as reads:
            list(generate(wanted, shelf, Settings().with_overrides(settings), lambda progress: None))
        return reads.count.total()

    return reads


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_read_no_more(reads: Any, sampler: str):
    assert reads({}, sampler=sampler, steps=5) == reads({}, sampler=sampler, steps=3)


BY_NOISE = {"s_min_uncond": 2.0, "skip_early_cond": 0.3}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_depends_on_the_noise_level_reads_no_more(reads: Any, sampler: str, monkeypatch: pytest.MonkeyPatch):
    """The timesteps that the guide was told are those that it is asked for."""
    told: list[float] = []
    asked: list[Tensor] = []
    timestep = Guide._timestep

    def noted(guide: Guide, call: int, t: Tensor) -> float:
        told.append(timestep(guide, call, t))
        asked.append(t.float())
        return told[-1]

    monkeypatch.setattr(Guide, "_timestep", noted)
    counts = {}
    for steps in (5, 3):
        told.clear(), asked.clear()
        counts[steps] = reads(BY_NOISE, sampler=sampler, steps=steps)
        assert len(told) >= steps - 1
        assert told == torch.stack(asked).tolist()
    assert counts[5] == counts[3]


@pytest.mark.parametrize("more", [{}, {"mask": Mask(image="b" * 64)}])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM2", "DDIM"])
def test_in_img2img_neither(reads: Any, sampler: str, more: dict[str, Any]):
    init = Init(images=("a" * 64,), denoising_strength=0.9, **more)
    assert reads(BY_NOISE, sampler=sampler, steps=9, init=init) == reads(BY_NOISE, sampler=sampler, steps=5, init=init)


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_waiting_for_a_refiner_reads_nothing(reads: Any, sampler: str):
    refiner = Refiner(checkpoint="tiny", switch_at=0.5)
    few, many = (reads({}, sampler=sampler, steps=steps, refiner=refiner) for steps in (4, 9))
    assert few == many
