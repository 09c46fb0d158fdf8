"""Step caching: which calls are whole, that the others do less, and that nothing stays behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.checkpoints import random_parts
from modules.families.family import Conditioning, Model, TextOptions
from modules.families.loader import read_model
from modules.families.networks.step_caching import MOST_KEPT, step_caching
from tests.tiny import FP32, SIZES, save_tiny_of
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


def counted(model: Model) -> list[int]:
    """Grows by one with each call of the innermost level that computes something."""
    calls: list[int] = []
    model.components["unet"].mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
    return calls


def conditioning(model: Model, text: str = "an apple") -> Conditioning:
    return model.encode([text], TextOptions())


def latents(width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, width, generator=torch.Generator().manual_seed(seed))


def run(model: Model, cond: Conditioning, calls: int, width: int = 8) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model.predict(latents(width, i), torch.tensor([900.0 - i]), cond) for i in range(calls)]


def test_one_of_three_calls_is_whole(tiny_model: Model):
    cond = conditioning(tiny_model)
    plain = run(tiny_model, cond, 7)
    inner = counted(tiny_model)
    with step_caching(tiny_model, 3):
        cached = run(tiny_model, cond, 7)
    assert len(inner) == 3
    same = [torch.equal(*pair) for pair in zip(plain, cached, strict=True)]
    assert same == [True, False, False, True, False, False, True]
    assert all(one.isfinite().all() for one in cached)


def test_equal_input_gives_what_a_whole_call_gives(tiny_model: Model):
    """Where nothing has changed since the whole call, the short way is exact."""
    cond, x, t = conditioning(tiny_model), latents(), torch.tensor([500.0])
    with torch.inference_mode(), step_caching(tiny_model, 2):
        whole, short = tiny_model.predict(x, t, cond), tiny_model.predict(x, t, cond)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "refiner"])
def test_other_families(tmp_path: Path, kind: Any):
    model = read_model(save_tiny_of(tmp_path / "tiny.safetensors", kind, random_parts(kind, SIZES[kind])), FP32)
    cond, x, t = conditioning(model), latents(), torch.tensor([500.0])
    with torch.inference_mode(), step_caching(model, 2):
        whole, short = model.predict(x, t, cond), model.predict(x, t, cond)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-6)


def test_every_conditioning_has_its_own(tiny_model: Model):
    one, other = conditioning(tiny_model), conditioning(tiny_model, "a pear")
    inner = counted(tiny_model)
    with torch.inference_mode(), step_caching(tiny_model, 2):
        for i in range(4):
            for cond in (one, other):
                tiny_model.predict(latents(seed=i), torch.tensor([900.0 - i]), cond)
    assert len(inner) == 4


def test_another_size_is_computed_whole(tiny_model: Model):
    cond, inner = conditioning(tiny_model), counted(tiny_model)
    with step_caching(tiny_model, 5):
        run(tiny_model, cond, 2)
        run(tiny_model, cond, 2, width=10)  # odd on the inner levels
    assert len(inner) == 2


def test_forgets_old_conditionings(tiny_model: Model):
    conds = [conditioning(tiny_model, str(n)) for n in range(MOST_KEPT + 1)]
    inner = counted(tiny_model)
    with step_caching(tiny_model, 9):
        for cond in [*conds, conds[0]]:
            run(tiny_model, cond, 1)
    assert len(inner) == MOST_KEPT + 2


def test_a_call_that_failed_is_not_counted(tiny_model: Model):
    cond, inner = conditioning(tiny_model), counted(tiny_model)
    with step_caching(tiny_model, 2):
        with pytest.raises(RuntimeError):
            tiny_model.predict(latents()[:, :3], torch.tensor([900.0]), cond)
        run(tiny_model, cond, 2)
    assert len(inner) == 1


def test_undone_also_after_an_exception(tiny_model: Model):
    cond = conditioning(tiny_model)
    plain = run(tiny_model, cond, 3)
    unet = tiny_model.components["unet"]
    before = [dict(vars(block)) for block in (*unet.down_blocks, *unet.up_blocks, unet.mid_block)]
    with pytest.raises(KeyError), step_caching(tiny_model, 3):
        run(tiny_model, cond, 3)
        raise KeyError
    after = [dict(vars(block)) for block in (*unet.down_blocks, *unet.up_blocks, unet.mid_block)]
    assert [block.get("forward") for block in before] == [block.get("forward") for block in after]
    assert all(torch.equal(*pair) for pair in zip(plain, run(tiny_model, cond, 3), strict=True))
    with step_caching(tiny_model, 1):
        assert "predict" not in vars(tiny_model)
