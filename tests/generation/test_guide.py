"""Guidance, call by call, on a model whose prediction is a plain function of what it is shown."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.diffusion.prediction import scaled_linear_alphas_cumprod, sigmas_from
from modules.families.family import Conditioning, TextOptions
from modules.generation.guide import Guide
from modules.generation.prompts import Encoder, Prompts
from modules.generation.skipping import Skipping
from modules.prompt.schedule import Timeline

X, T = torch.ones(1, 4, 2, 2), torch.tensor(500.0)
VALUES = {"a": 1.0, "b": 3.0, "": 0.5, "long": 7.0}


class Plain:
    """Predicts the value of the text that it is shown, and keeps the sizes of its batches."""

    image_channels = 0
    alphas_cumprod = scaled_linear_alphas_cumprod()

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        chunks = 2 if "long" in texts else 1
        return Conditioning(torch.stack([torch.full((77 * chunks, 3), VALUES[text.strip()]) for text in texts]))

    def eps_of(self, predicted: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        return predicted

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning, beside: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        return x * conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)


def guide_of(model: Any, prompt: str, negative: str = "", scale: float = 3.0, batch: int = 1, **more: Any) -> Guide:
    prompts = Prompts([prompt] * batch, [negative] * batch, Encoder(model, TextOptions()), Timeline(8))
    return Guide(lambda: model, prompts, scale, **more)


def value(found: Tensor) -> float:
    assert (found == found.flatten()[0]).all()
    return float(found.flatten()[0])


def test_the_prompt_pushes_away_from_the_negative_prompt() -> None:
    model = Plain()
    guided, without = guide_of(model, "a").both(X, T)
    assert (value(guided), value(without)) == (0.5 + 0.5 * 3, 0.5)
    assert model.sizes == [2]


def test_parts_push_together() -> None:
    model = Plain()
    found = guide_of(model, "a AND b :0.5").eps(X, T)
    assert value(found) == pytest.approx(0.5 + 3 * ((1 - 0.5) + 0.5 * (3 - 0.5)))
    assert model.sizes == [3]


@pytest.mark.parametrize("negative", ["long", ""])
def test_prompts_of_different_length_or_one_by_one_give_the_same(negative: str) -> None:
    model, calls = Plain(), 2 if negative else 1
    together = value(guide_of(model, "a", negative).eps(X, T))
    assert len(model.sizes) == calls
    assert value(guide_of(model, "a", negative, at_once=False).eps(X, T)) == together
    assert model.sizes[calls:] == [1, 1]


def test_a_scale_of_1_needs_no_negative_prompt_but_for_cfg_pp() -> None:
    model = Plain()
    assert value(guide_of(model, "a", scale=1).eps(X, T)) == 1.0
    assert model.sizes == [1]
    guided, without = guide_of(model, "a", scale=1).both(X, T)
    assert (value(guided), value(without)) == (1.0, 0.5)
    assert value(guide_of(model, "a AND b", scale=1).eps(X, T)) == pytest.approx(0.5 + 0.5 + 2.5)


def test_skipped_calls_show_the_prompt_alone() -> None:
    model, skipping = Plain(), Skipping(4, early=0.25)
    guide = guide_of(model, "a AND b", batch=2, skipping=skipping)
    x = torch.ones(2, 4, 2, 2)
    found = [guide.eps(x, T) for _ in range(3)]
    assert [value(f) for f in found[:2]] == [pytest.approx(1 + 3 * (3 - 1))] * 2  # "a" in the negative's place
    assert value(found[2]) == pytest.approx(0.5 + 3 * (0.5 + 2.5))
    assert model.sizes == [4, 4, 6]
    assert guide.notes() == {"Skip Early CFG": 0.25}


def test_low_noise_is_told_by_the_timestep() -> None:
    sigmas = sigmas_from(Plain.alphas_cumprod)
    skipping = Skipping(4, below=float(sigmas[300]), every=True)
    guide = guide_of(Plain(), "a", skipping=skipping)
    assert value(guide.eps(X, torch.tensor(301))) == 2.0
    assert guide.notes() == {}
    assert value(guide.eps(X, torch.tensor(299.5))) == 1.0
    assert guide.notes() == {"NGMS": float(sigmas[300]), "NGMS all steps": True}


def test_padding_is_told_once_it_has_changed_something() -> None:
    model: Any = Plain()
    for negative, notes in (("", {}), ("long", {"Pad conds": True})):
        prompts = Prompts(["a"], [negative], Encoder(model, TextOptions()), Timeline(8), padding="chunks")
        guide = Guide(lambda: model, prompts, 3.0)
        guide.eps(X, T)
        assert guide.notes() == notes
        assert model.sizes.pop() == 2


def test_a_refiner_may_take_over_before_a_call() -> None:
    seen: list[int] = []
    guide = guide_of(Plain(), "a", before_call=lambda call, t: seen.append(call))
    for _ in range(3):
        guide.eps(X, T)
    assert seen == [0, 1, 2]


def test_a_picture_editor_weighs_its_picture() -> None:
    model: Any = SimpleNamespace(image_channels=4, encode=Plain().encode)
    model.eps_of = lambda predicted, x, timestep: predicted
    model.predict = lambda x, t, cond, beside: x * (cond.cross[:, 0, 0].view(-1, 1, 1, 1) + beside)
    guide = guide_of(model, "a", beside=lambda: torch.full((1, 4, 2, 2), 2.0), image_scale=1.5)
    assert value(guide.eps(X, T)) == pytest.approx(0.5 + 3 * (3 - 2.5) + 1.5 * (2.5 - 0.5))


def test_where_memory_is_short_few_rows_go_at_once_and_always_the_same_parts_of_the_prompts() -> None:
    """Keys, values and cached steps are kept by the conditionings that a model is shown."""
    seen: list[Conditioning] = []

    class Seeing(Plain):
        def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning, beside: Tensor | None = None) -> Tensor:
            seen.append(conditioning)
            return super().predict(x, t, conditioning, beside)

    x = torch.ones(3, 4, 2, 2)
    whole = guide_of(Plain(), "a", batch=3).eps(x, T)
    model = Seeing()
    guide = guide_of(model, "a", batch=3, rows=lambda: 4)
    for _ in range(2):
        assert torch.equal(guide.eps(x, T), whole)
    assert model.sizes == [4, 2, 4, 2]
    assert seen[0] is seen[2] and seen[1] is seen[3]
    by_one = guide_of(model, "a", batch=3, rows=lambda: 1, at_once=False)
    assert torch.equal(by_one.eps(x, T), whole) and torch.equal(by_one.eps(x, T), whole)
    assert len({id(one) for one in seen[4:]}) == 6 and len(seen[4:]) == 12
