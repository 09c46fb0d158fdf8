"""Parts of a model that come when they work and leave when others do: on a device that the CPU plays."""

from typing import Any

import pytest
import torch

from modules.families import residence
from modules.families.family import TextOptions
from modules.families.footprint import footprint_of, size_of
from modules.families.levels import Work
from modules.families.residence import NotEnoughMemory, Residence
from modules.runtime.memory import GIB, MIB, Memory, SimulatedMemory
from tests.simulated import Boastful, simulated
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

WORK = Work(1, 2, 64, 64)


def steps(model: Any) -> list[torch.Tensor]:
    """What a run asks of a model."""
    with torch.inference_mode():
        conditioning = model.encode(["a cat"], TextOptions())
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        predicted = model.predict(x, torch.tensor([500]), conditioning)
        return [
            conditioning.cross,
            predicted,
            model.decode(predicted),
            model.encode_image(torch.zeros(1, 3, 64, 64), x),
        ]


def weights(model: Any) -> list[torch.Tensor]:
    return [weight.clone() for network in model.components.values() for weight in network.parameters()]


@pytest.mark.parametrize("level", ["whole", "in turn", "streamed"])
def test_every_level_gives_the_same(tiny_model: Any, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, before = steps(tiny_model), weights(tiny_model)
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        home = Residence(memory, lambda family: level)  # type: ignore[arg-type,return-value]
        plan = home.arrange(tiny_model, WORK)
        home.start()
        assert plan and plan.level == level
        for got, expected in zip(steps(tiny_model), wanted, strict=True):
            torch.testing.assert_close(got, expected)
        home.settle()
        assert bool(memory.present) == (level == "whole")
    assert all(torch.equal(now, then) for now, then in zip(weights(tiny_model), before, strict=True))
    for module in (module for network in tiny_model.components.values() for module in network.modules()):
        assert not hasattr(module, "_diffusers_hook") and not module._forward_pre_hooks


def test_in_turn_only_one_part_is_there(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        home = Residence(memory, lambda family: "in turn")
        home.arrange(tiny_model, WORK)
        home.start()
        assert not memory.present
        parts = tiny_model.components
        watched = {"text_encoder": parts["text_encoder"], "unet": parts["unet"], "vae": parts["vae"].decoder}
        handles = [
            module.register_forward_hook(lambda *given, name=name: seen.append((name, set(memory.present))))
            for name, module in watched.items()
        ]
        steps(tiny_model)
        for handle in handles:
            handle.remove()
        home.settle()
    assert seen == [(name, {parts[name]}) for name in ("text_encoder", "unet", "vae")]


def test_streamed_layers_are_there_one_at_a_time(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(size_of(layer, recurse=False) for layer in tiny_model.unet.modules())
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        home = Residence(memory, lambda family: "streamed")
        home.arrange(tiny_model, WORK)
        home.start()
        most, take = [0], memory.take

        def watched(what: object, size: int) -> None:
            take(what, size)
            most[0] = max(most[0], sum(memory.present.values()))

        monkeypatch.setattr(memory, "take", watched)
        with torch.inference_mode():
            conditioning = tiny_model.encode(["a cat"], TextOptions())
            most[0] = 0
            tiny_model.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), conditioning)
        assert 0 < most[0] <= 2 * largest < footprint_of(tiny_model).unet / 3
        home.settle()


def test_after_a_failure_half_way_all_is_at_home(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(tiny_model)

    def broken(*given: object) -> None:
        raise torch.OutOfMemoryError("now")

    for level in ("in turn", "streamed"):
        with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
            home = Residence(memory, lambda family, level=level: level)  # type: ignore[misc]
            home.arrange(tiny_model, WORK)
            home.start()
            handle = tiny_model.unet.mid_block.register_forward_pre_hook(broken)
            with pytest.raises(torch.OutOfMemoryError):
                steps(tiny_model)
            handle.remove()
            home.settle()
            assert not memory.present
        assert all(torch.equal(now, then) for now, then in zip(weights(tiny_model), before, strict=True))


def test_weights_can_be_changed_after_every_level(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRAs are taken out of them outside of inference mode, in place."""
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        home = Residence(memory, lambda family: "streamed")
        home.arrange(tiny_model, WORK)
        home.start()
        steps(tiny_model)
        home.settle()
    with torch.no_grad():
        for weight in tiny_model.unet.parameters():
            weight.add_(0)


def test_a_level_is_planned_for_what_is_free(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = footprint_of(tiny_model)
    reached = []
    for limit in (sizes.weights * 3, int(sizes.weights * 0.99), 100_000):
        with simulated(SimulatedMemory(limit), monkeypatch) as memory:
            home = Residence(memory)
            try:
                plan = home.arrange(tiny_model, Work(1, 2, 16, 16))
                reached.append(plan.level if plan else "")
                assert home.facts()["available"] == limit
                home.settle()
            except NotEnoughMemory as refused:
                assert "of 0 MB in all; ask for a smaller size or batch" in str(refused)
                reached.append("refused")
    assert reached == ["whole", "in turn", "refused"]


def test_the_model_before_makes_room(tiny_folder: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.families.loader import read_model
    from tests.tiny import FP32

    other = read_model(tiny_folder / "tiny.safetensors", FP32)
    with simulated(SimulatedMemory(GIB), monkeypatch) as memory:
        home = Residence(memory)
        home.arrange(tiny_model, WORK)
        home.start()
        home.settle()
        home.arrange(other, WORK)
        home.start()
        assert set(memory.present) == set(other.components.values())
        home.settle()


def test_on_a_device_without_moves_nothing_moves(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(SimulatedMemory(GIB, moves=False), monkeypatch) as memory:
        plan = Residence(memory, lambda family: "streamed").arrange(tiny_model, WORK)
        assert plan and plan.level == "whole" and len(memory.present) == 3


@pytest.mark.parametrize("in_order", [True, False])
def test_the_next_layer_is_copied_ahead_only_where_it_is_known(
    tiny_model: Any, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step caching passes over layers: whoever waits for the copy of one of those would wait for none."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(residence, "apply_group_offloading", lambda unet, **options: asked.append(options))
    with residence.streaming(tiny_model.unet, Memory(torch.device("cuda")), in_order):
        pass
    (options,) = asked
    assert [options[name] for name in ("use_stream", "record_stream", "non_blocking")] == [in_order] * 3


def test_loading_goes_to_the_device_if_all_fits_there() -> None:
    assert Residence().home_for(GIB).type == "cpu"
    assert Residence(Memory(torch.device("cpu"))).home_for(GIB).type == "cpu"


def test_a_boast_is_believed(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(Boastful(MIB), monkeypatch) as memory, pytest.raises(torch.OutOfMemoryError):
        Residence(memory).arrange(tiny_model, WORK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("level", ["whole", "in turn", "streamed"])
def test_every_level_gives_the_same_on_a_card(tiny_folder: Any, level: str) -> None:
    from dataclasses import replace

    from modules.families.loader import read_model
    from tests.tiny import FP32

    model = read_model(tiny_folder / "tiny.safetensors", replace(FP32, device=torch.device("cuda", 0)))
    home = Residence(least=lambda family: level)  # type: ignore[arg-type,return-value]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        home.arrange(model, WORK)
        home.start()
        conditioning = model.encode(["a cat"], TextOptions())
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()
        first = [model.predict(x, torch.tensor([500]).cuda(), conditioning) for _ in range(3)]
        home.settle()
        assert all(torch.equal(one, first[0]) for one in first)
        plain = read_model(tiny_folder / "tiny.safetensors", FP32)
        expected = plain.predict(x.cpu(), torch.tensor([500]), plain.encode(["a cat"], TextOptions()))
    torch.testing.assert_close(first[0].cpu(), expected, atol=1e-3, rtol=1e-3)
