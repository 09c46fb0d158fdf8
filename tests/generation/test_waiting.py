"""Nothing in the loop waits for the device: every number that is read from it costs a stop of its queue. Counted on the
CPU by the one operation that reads numbers."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modules.diffusion.names import SAMPLER_INFOS
from modules.generation.engine import generate
from modules.generation.plan import plan
from modules.generation.shelf import Shelf
from modules.library.checkpoints import Checkpoint
from modules.settings.schema import Settings
from tests.generation.test_engine import checkpoint as checkpoint
from tests.generation.test_engine import request
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

READS = ("aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.nonzero.default")


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += str(func) in READS
        return func(*args, **(kwargs or {}))


def test_reading_is_seen():
    with Reads() as reads:
        assert torch.ones(()) > 0
        float(torch.ones(()))
        torch.ones(()).item()
    assert reads.count.total() == 3


# It measures its own error and chooses its steps by it.
ADAPTIVE = "DPM adaptive"


@pytest.mark.parametrize("sampler", [info.name for info in SAMPLER_INFOS if info.name != ADAPTIVE])
def test_more_steps_read_no_more(tiny_model: Any, checkpoint: Checkpoint, sampler: str):
    def reads(steps: int) -> int:
        wanted = plan(request(sampler=sampler, steps=steps))
        with Reads() as reads:
            list(generate(wanted, Shelf.of(tiny_model, checkpoint), Settings(), lambda progress: None))
        return reads.count.total()

    assert reads(5) == reads(3)
