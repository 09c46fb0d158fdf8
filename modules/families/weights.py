"""Reads the tensors of one .safetensors file one at a time, mapped, so that loading never holds the file twice.

Pages of the mapping are given back as soon as a tensor has been copied into the run's dtype: the peak of a load is the
loaded model plus one tensor.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.families import fp8, upcast
from modules.families.gguf import dequantised
from modules.library.gguf import QUANTISED
from modules.library.header import Header, ModelFileError, TensorInfo

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
INTEGERS: Mapping[str, torch.dtype] = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
# Beside a weight in float8: one number, or one an output, that all of it is to be multiplied by.
SCALES = (".scale_weight", ".weight_scale")


@dataclass(frozen=True)
class Piece:
    """Part of a stored tensor: of `parts` equal slices of its rows the one with the number `part`, perhaps turned."""

    name: str
    part: int = 0
    parts: int = 1
    turned: bool = False  # rows become columns


class BeyondHalf(ModelFileError):
    """The file has numbers that fp16 has not."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, f"the tensor {name!r} holds values beyond the range of float16; start with --no-half")
        self.name = name


class Weights(ABC):
    """The tensors of an open checkpoint, by name. What was read stays valid after it is closed."""

    def __init__(self, path: Path, header: Header):
        self.path, self.header = path, header
        self.watch: Callable[[int], None] = lambda count: None  # is told how many bytes each `read` took

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def read(
        self,
        wanted: str | Piece,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool = False,
        scaled: bool = True,
    ) -> Tensor:
        """A copy of the tensor in `dtype` on `device`, without the scale beside it where `scaled` is False. Raises
        ModelFileError if it is missing or holds no numbers."""
        piece = Piece(wanted) if isinstance(wanted, str) else wanted
        info = self.header.tensors.get(piece.name)
        if info is None:
            raise ModelFileError(self.path, f"the tensor {piece.name!r} is missing; the file is incomplete")
        if info.dtype in QUANTISED:
            stored: torch.dtype | None = torch.float32
        else:
            stored = DTYPES.get(info.dtype) or (INTEGERS.get(info.dtype) if not dtype.is_floating_point else None)
        if stored is None:
            raise ModelFileError(
                self.path, f"the tensor {piece.name!r} has dtype {info.dtype}, which is not a weight's"
            )
        whole = self._stored(piece.name, info, stored, device)
        if scaled and (scale := self.scale_of(piece.name, device)) is not None:
            whole = whole.to(device, torch.float32) * scale
        tensor = piece_of(whole, piece, self.path)
        layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
        copied = torch.empty(tensor.shape, dtype=dtype, device=device, memory_format=layout).copy_(tensor)
        # A sum in halves may leave their range, then all are looked at; it is nine times as fast as one in fp32.
        if not copied.sum().isfinite() and not copied.isfinite().all():
            if dtype is torch.float16 and tensor.float().isfinite().all():
                raise BeyondHalf(self.path, piece.name)
            raise ModelFileError(self.path, _not_finite(piece.name, tensor))
        del tensor
        self._forget(piece.name, info)
        self.watch((info.end - info.start) // piece.parts)
        return copied

    def stored(self, name: str) -> Tensor:
        """The tensor's bytes (N,) uint8 as they lie in the file, valid until it is closed; nothing of them is checked.
        `done_with` gives their pages back. Raises ModelFileError for a dtype that can't be read so."""
        info = self.header.tensors[name]
        dtype = DTYPES.get(info.dtype) or INTEGERS.get(info.dtype)
        if dtype is None:
            raise ModelFileError(self.path, f"the tensor {name!r} has dtype {info.dtype}, which can't be copied")
        return self._stored(name, info, dtype, torch.device("cpu")).contiguous().view(-1).view(torch.uint8)

    def done_with(self, name: str) -> None:
        self._forget(name, self.header.tensors[name])

    def scale_of(self, name: str, device: torch.device) -> Tensor | None:
        """(outputs or 1, 1, …) float32: what a weight in float8 is to be multiplied by; None: by nothing."""
        info = self.header.tensors[name]
        if info.dtype not in fp8.FILE_DTYPES or not name.endswith(".weight"):
            return None
        stem = name.removesuffix(".weight")
        beside = next((stem + ending for ending in SCALES if stem + ending in self.header.tensors), None)
        if beside is None:
            return None
        scale = self.read(beside, torch.float32, device).flatten()
        if len(scale) not in (1, info.shape[0] if info.shape else 1):
            raise ModelFileError(
                self.path, f"{beside} has {len(scale)} numbers; one, or {info.shape[0]}, one an output, were expected"
            )
        return scale.reshape(-1, *[1] * (len(info.shape) - 1))

    @abstractmethod
    def _stored(self, name: str, info: TensorInfo, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor where it lies in the file; a quantised one as numbers, where `device` made them."""

    def _forget(self, name: str, info: TensorInfo) -> None:  # noqa: B027 - nothing to do for most
        """It won't be read again soon."""


class WeightFile(Weights):
    """An open, mapped .safetensors file. Use `opened`."""

    def __init__(self, path: Path, header: Header, mapping: mmap.mmap):
        super().__init__(path, header)
        self._mapping = mapping

    def stored(self, name: str) -> Tensor:
        """Of any dtype: a safetensors file says how many bytes there are."""
        info = self.header.tensors[name]
        if info.dtype in QUANTISED:
            raise ModelFileError(self.path, f"the tensor {name!r} is quantised ({info.dtype}), which can't be copied")
        if info.start == info.end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._mapping, dtype=torch.uint8, count=info.end - info.start, offset=info.start)

    def _stored(self, name: str, info: TensorInfo, dtype: torch.dtype, device: torch.device) -> Tensor:
        if info.start == info.end:
            return torch.empty(info.shape, dtype=dtype)
        view = torch.frombuffer(self._mapping, dtype=torch.uint8, count=info.end - info.start, offset=info.start)
        if info.dtype in QUANTISED:
            return dequantised(view, info.dtype, info.shape, device)
        if info.start % dtype.itemsize:  # headers of odd length leave the data unaligned
            view = view.clone()
        return view.view(dtype).view(info.shape)

    def _forget(self, name: str, info: TensorInfo) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            page = mmap.PAGESIZE
            first, last = info.start // page * page, info.end // page * page
            if last > first:
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


class RenamedHeader(Header):
    """Of tensors that lie elsewhere and have other names there."""

    def __init__(
        self, places: Mapping[str, tuple[Path, Header, str]], metadata: Mapping[str, str] | None = None, size: int = 0
    ):
        tensors = {name: header.tensors[own] for name, (_, header, own) in places.items()}
        super().__init__(tensors, metadata or {}, size)
        object.__setattr__(self, "places", places)

    places: Mapping[str, tuple[Path, Header, str]]


class RenamedFiles(Weights):
    """The open files of a RenamedHeader."""

    def __init__(self, path: Path, header: RenamedHeader, files: Mapping[Path, Weights]):
        super().__init__(path, header)
        self._places, self._files = header.places, files

    def stored(self, name: str) -> Tensor:
        path, _, own = self._places[name]
        return self._files[path].stored(own)

    def _stored(self, name: str, info: TensorInfo, dtype: torch.dtype, device: torch.device) -> Tensor:
        path, _, own = self._places[name]
        return self._files[path]._stored(own, info, dtype, device)

    def _forget(self, name: str, info: TensorInfo) -> None:
        path, _, own = self._places[name]
        self._files[path]._forget(own, info)


def piece_of(tensor: Tensor, piece: Piece, path: Path) -> Tensor:
    """The piece, as a view."""
    if piece.parts > 1:
        if tensor.ndim == 0 or tensor.shape[0] % piece.parts:
            raise ModelFileError(
                path, f"{piece.name} has the shape {tuple(tensor.shape)}, which can't be cut into {piece.parts}"
            )
        tensor = tensor.chunk(piece.parts)[piece.part]
    return tensor.T if piece.turned else tensor


def _not_finite(name: str, stored: Tensor) -> str:
    bad = int((~stored.float().isfinite()).sum())
    return (
        f"the tensor {name!r} holds {bad} values that are no numbers (NaN or infinity) among {stored.numel()}; "
        "the file is damaged, or a merge went wrong: get another copy"
    )


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


def halves_of(file: Weights, names: Iterable[tuple[str, str | Piece]]) -> torch.dtype | None:
    """The 16-bit dtype that all these tensors have in the file; None: they are others, or of more than one."""
    places = (theirs.name if isinstance(theirs, Piece) else theirs for _, theirs in names)
    found = {info.dtype for place in places if (info := file.header.tensors.get(place)) and info.dtype in DTYPES}
    return DTYPES[found.pop()] if found in ({"F16"}, {"BF16"}) else None


def fill(
    module: nn.Module,
    names: Iterable[tuple[str, str | Piece]],
    file: Weights,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool = False,
) -> None:
    """Give every parameter of `module` (built on the meta device) its tensor; `names` pairs the module's own names with
    the file's. Raises ModelFileError where a shape differs."""
    wanted, layers = module.state_dict(), dict(module.named_modules())
    state: dict[str, Tensor] = {}
    for own, theirs in names:
        layer, _, parameter = own.rpartition(".")
        kept = layers[layer]
        if isinstance(kept, fp8.Kept) and parameter == "weight":
            tensor = file.read(theirs, torch.float32, device, scaled=False)
        else:
            own_dtype = upcast.dtype_in(kept, dtype)
            kept, tensor = None, file.read(theirs, own_dtype, device, channels_last)
        shape = wanted[own].shape
        if tensor.shape != shape and tensor.shape[: len(shape)] == shape and tensor.numel() == wanted[own].numel():
            tensor = tensor.reshape(shape)  # a 1×1 convolution in the file, a linear layer here
        if tensor.shape != shape:
            called = theirs.name if isinstance(theirs, Piece) else theirs
            raise ModelFileError(
                file.path, f"{called} has the shape {tuple(tensor.shape)}, but {tuple(shape)} was expected"
            )
        if isinstance(kept, fp8.Kept):
            tensor = kept.taken(tensor, file.scale_of(str(theirs), device), dtype, channels_last)
        state[own] = tensor
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
