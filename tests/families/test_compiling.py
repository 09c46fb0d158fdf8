"""The UNet through torch.compile: the same numbers, undone, kept for the next time; and who does without, and why."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modules.families.compiling import compiled, why_not
from modules.families.family import Conditioning, Model, TextOptions
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


class Backend:
    """Runs what it is given as it is, and counts."""

    def __init__(self, broken: bool = False):
        self.compiled, self.broken = 0, broken

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Any:
        if self.broken:
            raise RuntimeError("this compiler is broken")
        self.compiled += 1
        return graph.forward


def predicted(model: Model, cond: Conditioning, number: int = 0) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number))
    with torch.inference_mode():
        return model.predict(x, torch.tensor([500.0 - number]), cond)


def test_the_same_numbers_and_undone(tiny_model: Model):
    unet, backend = tiny_model.components["unet"], Backend()
    conds = [tiny_model.encode([text], TextOptions()) for text in ("a cat", "a dog")]
    plain = [predicted(tiny_model, cond, number) for number in range(2) for cond in conds]
    with compiled(tiny_model, "inductor", backend):
        first = [predicted(tiny_model, cond, number) for number in range(2) for cond in conds]
    assert backend.compiled > 0
    for ours, theirs in zip(first, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert unet._compiled_call_impl is None
    times = backend.compiled
    with compiled(tiny_model, "inductor", backend):  # what is compiled is kept
        predicted(tiny_model, conds[0])
    assert backend.compiled == times
    with pytest.raises(KeyError), compiled(tiny_model, "inductor", backend):
        raise KeyError
    assert unet._compiled_call_impl is None
    vars(unet).pop("compiled_calls")


def test_what_cannot_be_compiled_runs_as_it_is(tiny_model: Model, caplog: pytest.LogCaptureFixture):
    cond = tiny_model.encode(["a bird"], TextOptions())
    plain = predicted(tiny_model, cond)
    torch._dynamo.reset()
    with compiled(tiny_model, "cudagraphs", Backend(broken=True)):
        found = predicted(tiny_model, cond)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    vars(tiny_model.components["unet"]).pop("compiled_calls")
    torch._dynamo.reset()


def test_off_changes_nothing(tiny_model: Model):
    with compiled(tiny_model, "Off"):
        assert tiny_model.components["unet"]._compiled_call_impl is None


def test_who_does_without(monkeypatch: pytest.MonkeyPatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert "NVIDIA cards, and the device is cpu" in why_not("cudagraphs", cpu) and why_not("cudagraphs", cuda) == ""
    assert "mps" in why_not("inductor", torch.device("mps"))
    monkeypatch.setattr("modules.families.compiling.find_spec", lambda name: None)
    assert "triton" in why_not("inductor", cuda)
    monkeypatch.setattr("modules.families.compiling.find_spec", lambda name: object())
    for capability, said in (((7, 5), "no longer supports this card (compute capability 7.5)"), ((8, 6), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert why_not("inductor", cuda) == "" if not said else said in why_not("inductor", cuda)
