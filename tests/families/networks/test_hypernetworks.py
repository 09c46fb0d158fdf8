from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.families.family import Model
from modules.families.networks.applied import applied
from modules.families.networks.hypernetworks import load_hypernetwork
from modules.library.header import ModelFileError
from tests.families.networks.files import network_of
from tests.families.networks.test_applied import assert_untouched, outputs, state
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


def layers(width: int, *entries: nn.Module) -> dict[str, Tensor]:
    """The state of A1111's Sequential, called linear."""
    return nn.ModuleDict({"linear": nn.Sequential(*entries)}).state_dict()


def save(path: Path, content: dict[Any, Any]) -> Path:
    torch.save({"step": 1, "name": "hyper", "layer_structure": [1, 2, 1], **content}, path)
    return path


def test_structures(tmp_path: Path):
    torch.manual_seed(2)
    deep = nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Dropout(0.3)),
        *(nn.Linear(16, 16), nn.ReLU(), nn.LayerNorm(16), nn.Dropout(0.3), nn.Linear(16, 8)),
    ).eval()
    flat = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    x = torch.randn(3, 5, 8)
    cases: list[tuple[nn.Module, dict[str, Any], Any]] = [
        (deep, {"activation_func": "relu", "is_layer_norm": True, "activate_output": False}, deep),
        (flat, {"activation_func": "linear", "activate_output": False}, flat),
        (flat, {}, flat),
        (flat, {"activation_func": "swish"}, nn.Sequential(flat[0], nn.Hardswish(), flat[1], nn.Hardswish())),
        (flat, {"activation_func": "mish", "activate_output": False}, nn.Sequential(flat[0], nn.Mish(), flat[1])),
    ]
    for saved, facts, expected in cases:
        path = save(tmp_path / "h.pt", {8: [layers(8, *saved.children())] * 2, **facts})
        keys, values = load_hypernetwork(path)[8]
        torch.testing.assert_close(keys(x), expected(x))
        torch.testing.assert_close(values(x), expected(x))


def test_names_of_the_first_days(tmp_path: Path):
    old = {"linear1.weight": torch.ones(4, 2), "linear1.bias": torch.ones(4), "linear2.weight": torch.ones(2, 4)}
    old["linear2.bias"] = torch.zeros(2)
    path = save(tmp_path / "h.pt", {2: (old, old)})
    assert load_hypernetwork(path)[2][0](torch.ones(1, 2)).tolist() == [[12, 12]]


def test_applied_and_undone(tiny_model: Model, tmp_path: Path):
    torch.manual_seed(3)
    state_of = {w: [layers(w, nn.Linear(w, 2 * w), nn.Linear(2 * w, w)) for _ in range(2)] for w in (32, 64)}
    path = save(tmp_path / "h.pt", {**state_of, "activation_func": "relu", "activate_output": False})
    network = network_of(path, "hypernetwork", unet=0.7)
    before, plain = state(tiny_model), outputs(tiny_model)[1]
    with applied(tiny_model, [network]) as report:
        moved = outputs(tiny_model)[1]
    assert report.warnings == [] and (moved - plain).norm() > 0.01 * plain.norm()
    with applied(tiny_model, [network, network]):
        twice = outputs(tiny_model)[1]
    assert (twice - moved).norm() > 0.01 * plain.norm()
    assert_untouched(tiny_model, before)
    assert torch.equal(outputs(tiny_model)[1], plain)


GOOD = layers(32, nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {320: [layers(320, nn.Linear(320, 320))] * 2},
            "it is for the widths .320., this checkpoint .SD 1.x. has .32, 64.",
        ),
        ({}, "there are no layers by width in it"),
        ({32: [GOOD, GOOD], "activation_func": "os.system"}, "its activation 'os.system' is not known"),
        ({32: [layers(32, nn.Linear(31, 32))] * 2}, "its layer 0 for the width 32 reads 31, not 32"),
        ({32: [layers(32, nn.Linear(32, 31))] * 2}, "its layers for the width 32 give 31 numbers"),
        ({32: [{k: t * torch.nan for k, t in GOOD.items()}] * 2}, "holds NaN"),
        ({32: [{"x": torch.ones(1)}] * 2}, "unknown entry 'x'"),
        ({32: [{"linear.0.bias": torch.ones(32)}] * 2}, "its layer 0 for the width 32 has no weight"),
        ({32: ["a", "b"]}, "are no tensors by name"),
    ],
)
def test_what_cannot_be_used(tiny_model: Model, tmp_path: Path, content: dict[Any, Any], reason: str):
    network = network_of(save(tmp_path / "h.pt", content), "hypernetwork")
    before = state(tiny_model)
    with pytest.raises(ModelFileError, match=f"h.pt: .*{reason}"), applied(tiny_model, [network]):
        raise AssertionError("it was applied")
    assert_untouched(tiny_model, before)
