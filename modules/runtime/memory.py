"""The memory of the machine: how much a device and its host have, what running out of it looks like, and a budget to
simulate for tests. Knows torch, and nothing of models."""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB, GIB = 2**20, 2**30

# What devices and libraries say instead of torch.OutOfMemoryError.
_SAID = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host, had no room for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


class Memory:
    """That of one device, in bytes. On a CPU that is the host's."""

    def __init__(self, device: torch.device):
        self.device = device
        # Elsewhere the weights lie in the memory of the host anyway: there is nowhere to move them.
        self.moves = device.type in ("cuda", "xpu")

    def total(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[1])
        if self.device.type == "mps":
            return int(torch.mps.recommended_max_memory())
        if self.device.type == "xpu":
            return int(torch.xpu.mem_get_info(self.device)[1])
        return host_total()

    def free(self) -> int:
        """What new tensors may take, that which torch keeps for later among it."""
        if self.device.type == "cuda":
            kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(torch.cuda.mem_get_info(self.device)[0]) + kept
        if self.device.type == "mps":
            room = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
            return max(0, min(int(room), host_free()))
        if self.device.type == "xpu":
            kept = torch.xpu.memory_reserved(self.device) - torch.xpu.memory_allocated(self.device)
            return int(torch.xpu.mem_get_info(self.device)[0]) + kept
        return host_free()

    def release(self) -> None:
        """Gives back what nobody uses any more."""
        gc.collect()
        if trim := _malloc_trim():
            trim(0)
        if self.device.type in ("cuda", "mps", "xpu"):
            getattr(torch, self.device.type).empty_cache()

    def has(self, network: nn.Module) -> bool:
        """Whether its weights are there."""
        weight = next(network.parameters(), None)
        return weight is None or weight.device == self.device

    def take(self, network: object, size: int) -> None:
        """Its weights come to the device: so many bytes."""

    def give_back(self, network: object) -> None:
        """They have left it."""


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc keeps freed blocks of up to some megabytes for itself, unless it is told."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
        return found
    except (OSError, AttributeError):  # another C library, musl for example
        return None


def host_total() -> int:
    """Of this machine, or of the container that it is for us."""
    limit = _group_limit()
    total = int(psutil.virtual_memory().total)
    return min(total, limit[0]) if limit else total


def host_free() -> int:
    limit = _group_limit()
    free = int(psutil.virtual_memory().available)
    return max(0, min(free, limit[0] - limit[1])) if limit else free


def _group_limit(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, used) of this process's container; the page cache of files counts as used only as far as it is active."""
    try:
        limit = (root / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text("ascii"))
        stat = dict(line.split() for line in (root / "memory.stat").read_text("ascii").splitlines())
        return int(limit), used - int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


class Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it and live, those of fake tensors too. `limit`: more raises
    torch.OutOfMemoryError. `peak` is the most there was."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.live, self.peak = limit, 0, 0
        self._known: dict[int, int] = {}  # bytes of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), is_new=False)
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), is_new=True)
        return given

    def add(self, size: int) -> None:
        if self.limit is not None and self.live + size > self.limit:
            raise torch.OutOfMemoryError(
                f"simulated device out of memory: {size / MIB:.0f} MiB wanted, {self.live / MIB:.0f} MiB of "
                f"{self.limit / MIB:.0f} MiB in use"
            )
        self.live += size
        self.peak = max(self.peak, self.live)

    def _note(self, storage: Any, is_new: bool) -> None:
        """What was there before counts nothing, and neither do views of it."""
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes() if is_new else 0
            self.add(size)
            self._known[key] = size
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


class SimulatedMemory(Memory):
    """A device of `limit` bytes, played by the CPU: what is made under `counting`, and the weights that are said to be
    there, have to fit, else torch.OutOfMemoryError is raised."""

    def __init__(self, limit: int, moves: bool = True):
        super().__init__(torch.device("cpu"))
        self.moves = moves
        self.limit, self.present = limit, dict[object, int]()
        self._counting = Counting(limit)

    @contextmanager
    def counting(self) -> Iterator[Counting]:
        with self._counting:
            yield self._counting

    def total(self) -> int:
        return self.limit

    def free(self) -> int:
        return self.limit - self._counting.live

    def has(self, network: nn.Module) -> bool:
        return network in self.present

    def take(self, network: object, size: int) -> None:
        if network not in self.present:
            self._counting.add(size)
            self.present[network] = size

    def give_back(self, network: object) -> None:
        self._counting.live -= self.present.pop(network, 0)
