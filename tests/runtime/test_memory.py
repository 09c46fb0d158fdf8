"""Budgets that are played, what running out looks like, and the memory of containers."""

from pathlib import Path

import pytest
import torch

from modules.runtime import memory
from modules.runtime.memory import MIB, Counting, Memory, SimulatedMemory, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_has_many_names(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_torch_itself_says_on_the_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_counting_follows_what_lives() -> None:
    with Counting() as counting:
        first = torch.empty(MIB, dtype=torch.uint8)
        view = first[10:]
        second = torch.empty(MIB, dtype=torch.uint8)
        assert counting.live == 2 * MIB
        del second
        assert counting.live == MIB
        del first
        assert counting.live == MIB  # the view keeps it
        del view
    assert (counting.live, counting.peak) == (0, 2 * MIB)


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.ones(MIB)
    with Counting() as counting:
        assert before[1:].sum() + before.t()[0] > 0
        assert counting.peak < 100


def test_a_simulated_device_is_as_small_as_it_is_said_to_be() -> None:
    device = SimulatedMemory(3 * MIB)
    with device.counting():
        device.take("weights", 2 * MIB)
        kept = torch.empty(MIB, dtype=torch.uint8)
        assert device.free() == 0
        with pytest.raises(torch.OutOfMemoryError, match="1 MiB wanted, 3 MiB of 3 MiB in use"):
            torch.empty(MIB, dtype=torch.uint8)
        device.give_back("weights")
        device.give_back("weights")
        assert device.free() == 2 * MIB
        more = torch.empty(MIB, dtype=torch.uint8)
        with pytest.raises(torch.OutOfMemoryError):
            device.take("weights", 2 * MIB)
        del kept, more
    assert device.free() == 3 * MIB


def test_the_hosts_memory() -> None:
    here = Memory(torch.device("cpu"))
    assert not here.moves
    assert 0 < here.free() < here.total()
    here.release()


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    assert memory._group_limit(tmp_path) == (1000, 500)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group_limit(tmp_path) is None
    assert memory._group_limit(tmp_path / "nowhere") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cards_memory() -> None:
    card = Memory(torch.device("cuda", 0))
    assert card.moves and 0 < card.free() <= card.total()
    before = card.free()
    kept = torch.empty(64 * MIB, dtype=torch.uint8, device=card.device)
    assert card.free() <= before - 60 * MIB
    del kept
    card.release()
