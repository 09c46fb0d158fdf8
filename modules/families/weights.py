"""Reads the tensors of one .safetensors file one at a time, mapped, so that loading never holds the file twice.

Pages of the mapping are given back as soon as a tensor has been copied into the run's dtype: the peak of a load is the
loaded model plus one tensor.
"""

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.library.header import Header, ModelFileError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


class WeightFile:
    """An open, mapped .safetensors file. Use `opened`; tensors that were read stay valid after it is closed."""

    def __init__(self, path: Path, header: Header, mapping: mmap.mmap):
        self.path, self.header, self._mapping = path, header, mapping

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def read(self, name: str, dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
        """A copy of the tensor in `dtype` on `device`. Raises ModelFileError if it is missing or holds no numbers."""
        info = self.header.tensors.get(name)
        if info is None:
            raise ModelFileError(self.path, f"the tensor {name!r} is missing; the file is incomplete")
        stored = DTYPES.get(info.dtype) or (INTEGERS.get(info.dtype) if not dtype.is_floating_point else None)
        if stored is None:
            raise ModelFileError(self.path, f"the tensor {name!r} has dtype {info.dtype}, which is not a weight's")
        start, end = info.start, info.end
        if start == end:
            return torch.empty(info.shape, dtype=dtype, device=device)
        view = torch.frombuffer(self._mapping, dtype=torch.uint8, count=end - start, offset=start)
        if start % stored.itemsize:  # headers of odd length leave the data unaligned
            view = view.clone()
        tensor = view.view(stored).view(info.shape)
        layout = torch.channels_last if channels_last and len(info.shape) == 4 else torch.contiguous_format
        copied = torch.empty(info.shape, dtype=dtype, device=device, memory_format=layout).copy_(tensor)
        del tensor, view
        self._forget(start, end)
        return copied

    def _forget(self, start: int, end: int) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            page = mmap.PAGESIZE
            first, last = start // page * page, end // page * page
            if last > first:
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


@contextmanager
def opened(path: Path, header: Header) -> Iterator[WeightFile]:
    """Map the file for the time of a load. A file that changed since its header was read raises ModelFileError."""
    with path.open("rb") as file:
        if path.stat().st_size != header.size:
            raise ModelFileError(path, "it changed while it was being loaded; is it still being downloaded?")
        # A private copy-on-write mapping: torch wants writable memory, and nothing here writes.
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        yield WeightFile(path, header, mapping)
        # Not closed by hand: a traceback may still hold a view, and closing would then raise and hide it.
        del mapping


def fill(
    module: nn.Module,
    names: Iterable[tuple[str, str]],
    file: WeightFile,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool = False,
) -> None:
    """Give every parameter of `module` (built on the meta device) its tensor; `names` pairs the module's own names with
    the file's. Raises ModelFileError where a shape differs."""
    wanted = module.state_dict()
    state: dict[str, Tensor] = {}
    for own, theirs in names:
        tensor = file.read(theirs, dtype, device, channels_last)
        shape = wanted[own].shape
        if tensor.shape != shape and tensor.shape[: len(shape)] == shape and tensor.numel() == wanted[own].numel():
            tensor = tensor.reshape(shape)  # a 1×1 convolution in the file, a linear layer here
        if tensor.shape != shape:
            raise ModelFileError(
                file.path, f"{theirs} has the shape {tuple(tensor.shape)}, but {tuple(shape)} was expected"
            )
        state[own] = tensor
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
