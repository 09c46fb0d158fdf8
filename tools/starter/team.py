"""Several processes that train one network, each on samples of its own: local SGD.

Every so often all continue from the mean of their weights (Stich, "Local SGD Converges Fast and Communicates Little",
2019). On two cores without bf16 two processes made 28 to 34 samples/s, one, which did not train the text encoder, 19.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=10)  # for the slowest of them, before the others give up


@dataclass(frozen=True)
class Team:
    """One process's place among the others; a team of one needs no communication."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def average(self, weights: Iterable[Tensor]) -> None:
        """In place: the mean over all processes."""
        if self.size == 1:
            return
        parts = list(weights)
        flat = torch.cat([part.detach().flatten() for part in parts])
        distributed.all_reduce(flat)
        flat /= self.size
        for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))

    def leader_says(self, number: float) -> float:
        """The leader's number, everywhere."""
        if self.size == 1:
            return number
        said = torch.tensor(number, dtype=torch.float64)
        distributed.broadcast(said, 0)
        return float(said)


def train_together(size: int, work: Callable[[Team], None]) -> None:
    """Calls `work` in `size` processes and waits for all. It must be picklable; if one fails, so does this."""
    if size == 1:
        work(Team())
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_join_in, (size, work, Path(folder) / "meeting-place"), nprocs=size)


def _join_in(rank: int, size: int, work: Callable[[Team], None], meeting_place: Path) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    store = f"file://{meeting_place}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        work(Team(rank, size))
    except BaseException:
        log.exception(
            "process %d of %d has failed", rank + 1, size
        )  # the others only see that it is gone, and say that
        raise
    finally:
        distributed.destroy_process_group()
