"""Against what LyCORIS 4.1.3 computed for random weights of each kind (tests/data/lycoris.json: weight, the file's
tensors, and merged weight - weight), and against formulas written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.families.networks.deltas import BadNetwork, Delta, butterfly, cayley, delta_of
from tests.golden import DATA

CASES: list[dict[str, Any]] = json.loads((Path(DATA) / "lycoris.json").read_text())


def tensor(stored: dict[str, Any]) -> Tensor:
    return torch.tensor(stored["values"]).reshape(stored["shape"])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_as_lycoris(case: dict[str, Any]):
    weight = tensor(case["weight"])
    delta = delta_of({name: tensor(stored) for name, stored in case["parts"].items()}, weight)
    assert delta.weight is not None and delta.weight.shape == weight.shape
    torch.testing.assert_close(delta.weight.flatten(), torch.tensor(case["delta"]), rtol=1e-3, atol=2e-5)
    if case["bias"] is not None:
        torch.testing.assert_close(delta.bias, torch.tensor(case["bias"]), rtol=0, atol=1e-5)


def test_many_kinds_are_tried():
    assert len(CASES) >= 27


def weight_delta(parts: dict[str, Tensor], weight: Tensor, dim: int | None = None) -> Tensor:
    delta = delta_of(parts, weight, dim)
    assert isinstance(delta, Delta) and delta.weight is not None
    return delta.weight


def test_dyn_keeps_the_first_ranks_and_the_scale_of_all():
    up, down, weight = torch.randn(5, 4), torch.randn(4, 3), torch.zeros(5, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
    torch.testing.assert_close(weight_delta(parts, weight, dim=2), up[:, :2] @ down[:2] * 2 / 4)
    torch.testing.assert_close(weight_delta(parts, weight, dim=9), up @ down / 2)


def test_dora_is_learnt_at_full_strength_and_then_multiplied():
    case = next(case for case in CASES if case["name"] == "dora by output")
    weight, parts = tensor(case["weight"]), {name: tensor(stored) for name, stored in case["parts"].items()}
    half = delta_of(parts, weight.half(), multiplier=0.5).weight
    assert half is not None and half.dtype == torch.float32
    torch.testing.assert_close(half.flatten(), torch.tensor(case["delta"]) / 2, rtol=1e-2, atol=1e-3)


def test_a_scale_in_the_file_replaces_alpha():
    parts = {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 2), "alpha": torch.tensor(9.0)}
    parts["scale"] = torch.tensor(0.25)
    assert weight_delta(parts, torch.zeros(2, 2)).unique().tolist() == [0.25]


def test_full_bias_and_norm():
    diff, bias = torch.randn(3, 2, 1, 1), torch.randn(3)
    delta = delta_of({"diff": diff, "diff_b": bias}, torch.zeros(3, 2, 1, 1))
    assert delta.weight is not None and torch.equal(delta.weight, diff)
    assert delta.bias is not None and torch.equal(delta.bias, bias)
    assert delta_of({"diff_b": bias}, torch.zeros(3, 2)).weight is None
    half = delta_of({"b_norm": bias}, torch.zeros(3), multiplier=0.5).bias
    assert half is not None and torch.equal(half, bias / 2)


def test_sparse_bias_of_lycoris():
    parts = {"lora_up.weight": torch.zeros(2, 1), "lora_down.weight": torch.zeros(1, 3), "alpha": torch.tensor(1.0)}
    parts |= {"bias_indices": torch.tensor([[0, 1], [2, 0]]), "bias_values": torch.tensor([5.0, 7.0])}
    parts["bias_size"] = torch.tensor([2, 3])
    assert weight_delta(parts, torch.zeros(2, 3)).tolist() == [[0, 0, 5], [7, 0, 0]]


def test_old_glora_has_other_names_and_as_in_a1111_no_scale():
    weight, a1, a2 = torch.randn(5, 4), torch.randn(2, 4), torch.randn(4, 2)
    b1, b2 = torch.randn(2, 4), torch.randn(5, 2)
    parts = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": torch.tensor(1.0)}
    torch.testing.assert_close(weight_delta(parts, weight), weight @ a2 @ a1 + b2 @ b1)


def test_oft_written_out():
    weight, blocks = torch.randn(6, 4), torch.randn(2, 3, 3) * 0.3
    skew = blocks - blocks.transpose(1, 2)
    rotations = [(torch.eye(3) + q) @ torch.linalg.inv(torch.eye(3) - q) for q in skew]
    whole = torch.block_diag(*rotations).T
    torch.testing.assert_close(weight_delta({"oft_blocks": blocks}, weight), whole @ weight - weight)
    torch.testing.assert_close(weight_delta({"oft_diag": torch.stack(rotations)}, weight), whole @ weight - weight)
    torch.testing.assert_close(whole @ whole.T, torch.eye(6))
    kohya = weight_delta({"oft_blocks": blocks, "alpha": torch.tensor(0.01)}, weight)  # of norm at most 0.01 · 6
    held = cayley(blocks * (0.06 / skew.norm()), 0)
    torch.testing.assert_close(kohya, torch.block_diag(*held).T @ weight - weight, rtol=1e-4, atol=1e-6)


def test_the_butterfly_reaches_every_output():
    stages = torch.stack([cayley(torch.randn(4, 2, 2), 0) for _ in range(3)])
    whole = butterfly(stages, torch.eye(8))
    torch.testing.assert_close(whole @ whole.T, torch.eye(8), rtol=0, atol=1e-5)
    assert (whole.abs() > 1e-6).all()


def test_peft_keeps_the_lengths_of_outputs_even_where_sizes_are_equal():
    weight = torch.randn(4, 4, 3, 3)
    parts = {"lora_up.weight": torch.randn(4, 1, 1, 1), "lora_down.weight": torch.randn(1, 4, 3, 3)}
    lengths = torch.rand(1, 4, 1, 1) + 1
    merged = weight + weight_delta(parts | {"lora_magnitude_vector": lengths}, weight)
    torch.testing.assert_close(merged.flatten(1).norm(dim=1), lengths.flatten())
    merged = weight + weight_delta(parts | {"dora_scale": lengths}, weight)
    torch.testing.assert_close(merged.transpose(0, 1).flatten(1).norm(dim=1), lengths.flatten())


UP, DOWN = torch.ones(4, 2), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"lora_up.weight": UP}, "lora_up.weight are no known kind"),
        ({"lora_up.weight": UP, "lora_down.weight": torch.ones(2, 5)}, r"\(4, 5\) does not fit one of \(4, 3\)"),
        ({"lora_up.weight": UP, "lora_down.weight": torch.ones(3, 3)}, r"do not fit a weight of the shape \(4, 3\)"),
        ({"lora_up.weight": torch.ones(4, 0), "lora_down.weight": torch.ones(0, 3)}, "its rank is 0"),
        ({"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": torch.tensor(torch.nan)}, "alpha or scale is not a"),
        ({"lora_up.weight": UP, "lora_down.weight": DOWN, "dora_scale": torch.ones(7)}, "dora_scale of the shape"),
        ({"weight": torch.ones(9), "on_input": torch.tensor(0)}, "9 factors do not fit"),
        ({"oft_blocks": torch.ones(3, 2, 2)}, "3 blocks of 2 do not make up the 4 outputs"),
        ({"diff": torch.ones(4, 3), "diff_b": torch.ones(9)}, "a bias of 9 numbers does not fit 4 outputs"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(parts: dict[str, Tensor], reason: str):
    with pytest.raises(BadNetwork, match=reason):
        delta_of(parts, torch.zeros(4, 3))
