"""The tensors of one network file by name, whatever its format, read one at a time where the format allows it."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from modules.families import weights
from modules.families.networks.pickles import load_pickle
from modules.library.hashes import Fingerprint
from modules.library.header import ModelFileError, read_header

CPU = torch.device("cpu")
HALVES = ("F16", "BF16")


class Tensors(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        """Floating point comes as float32. Raises ModelFileError."""

    def as_stored(self, name: str) -> Tensor:
        """A copy of its own, in the file's dtype. Raises ModelFileError."""


class InMemory:
    """A file's tensors, without the file."""

    def __init__(self, tensors: Tensors):
        self.path, self.shapes, self.metadata = tensors.path, tensors.shapes, tensors.metadata
        self._tensors = {name: tensors.as_stored(name) for name in tensors.shapes}

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        tensor = self._tensors[name]
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device, dtype, copy=True)  # whoever reads may change it

    def as_stored(self, name: str) -> Tensor:
        return self._tensors[name].clone()


class NetworkFiles:
    """Keeps the tensors of the files that were read last. For the worker's thread only."""

    def __init__(self) -> None:
        self.room = 0  # files: the setting lora_in_memory_limit
        self._kept: OrderedDict[tuple[Path, Fingerprint], Tensors] = OrderedDict()  # the longest unused first

    @contextmanager
    def opened(self, path: Path) -> Iterator[Tensors]:
        """As `opened` below. A file that has changed is read anew."""
        try:
            key = (path, Fingerprint.of(path.stat()))
        except OSError as error:
            raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
        kept = self._kept.pop(key, None)
        if kept is None and not self.room:
            self._kept.clear()
            with opened(path) as tensors:
                yield tensors
            return
        if kept is None:
            with opened(path) as tensors:
                kept = InMemory(tensors)
        self._kept[key] = kept
        while len(self._kept) > self.room:
            self._kept.popitem(last=False)
        yield kept

    def kept(self) -> tuple[Path, ...]:
        return tuple(path for path, _ in self._kept)


@contextmanager
def opened(path: Path) -> Iterator[Tensors]:
    """Raises ModelFileError for a file that is damaged, or is another kind of file."""
    if path.suffix.lower() == ".safetensors":
        header = read_header(path)
        with weights.opened(path, header) as file:
            yield _Mapped(file)
    else:
        yield _Loaded(path)


class _Mapped:
    def __init__(self, file: weights.WeightFile):
        self.path, self._file = file.path, file
        self.shapes = {name: info.shape for name, info in file.header.tensors.items()}
        self.metadata = file.header.metadata

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        whole = weights.INTEGERS.get(self._file.header.tensors[name].dtype)
        return self._file.read(name, whole or torch.float32, device)

    def as_stored(self, name: str) -> Tensor:
        kind = self._file.header.tensors[name].dtype
        dtype = weights.INTEGERS.get(kind) or (weights.DTYPES[kind] if kind in HALVES else torch.float32)
        return self._file.read(name, dtype, CPU)


class _Loaded:
    def __init__(self, path: Path):
        loaded = load_pickle(path)
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
        if not isinstance(loaded, dict):
            raise ModelFileError(path, f"it holds a {type(loaded).__name__}; tensors by name were expected")
        self.path, self.metadata = path, dict[str, str]()
        self._tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        if not self._tensors:
            raise ModelFileError(path, "there are no tensors in this file")

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        tensor = self._tensors[name].detach().to(device)
        return tensor.float() if tensor.is_floating_point() else tensor

    def as_stored(self, name: str) -> Tensor:
        return self._tensors[name].detach().clone()
