"""A device with little memory, played by the CPU. Weights that are streamed count only while their layer has them;
meanwhile they are no numbers, so that whoever reads them behind the layer's back spoils the picture."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from modules.families import levels, residence
from modules.runtime.memory import SimulatedMemory


class Boastful(SimulatedMemory):
    """Says that it has plenty: every plan fits, until it is tried."""

    def free(self) -> int:
        return 2**40


@contextmanager
def simulated(memory: SimulatedMemory, patch: pytest.MonkeyPatch, counts: bool = True) -> Iterator[SimulatedMemory]:
    """`counts`: what is computed with too, which makes the networks slow; else only weights."""
    home: list[tuple[Tensor, Tensor]] = []

    def tensors(group: Any) -> list[Tensor]:
        of_modules = [tensor for module in group.modules for tensor in residence.weights_of(module)]
        return [*of_modules, *group.parameters, *group.buffers]

    def onload(group: Any) -> None:
        memory.take(group, sum(tensor.nbytes for tensor in group.own))
        for tensor, data in zip(tensors(group), group.own, strict=True):
            tensor.data = data

    def offload(group: Any) -> None:
        if not hasattr(group, "own"):
            group.own = [tensor.data for tensor in tensors(group)]
            home.extend(zip(tensors(group), group.own, strict=True))
        for tensor in tensors(group):
            if tensor.dtype.is_floating_point:
                tensor.data = torch.full((), float("nan"), dtype=tensor.dtype).expand(tensor.shape)
        memory.give_back(group)

    def unstream(unet: nn.Module) -> None:
        own(unet)
        for tensor, data in home:
            tensor.data = data
        home.clear()

    own = residence.unstream
    with patch.context() as patched, memory.counting() if counts else nullcontext():
        patched.setattr(ModuleGroup, "onload_", onload)
        patched.setattr(ModuleGroup, "offload_", offload)
        patched.setattr(residence, "unstream", unstream)
        patched.setattr(levels, "RESERVE", 0)  # more than tiny networks need in all
        yield memory
