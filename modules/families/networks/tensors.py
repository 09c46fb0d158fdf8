"""The tensors of one network file by name, whatever its format, read one at a time where the format allows it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from modules.families import weights
from modules.families.networks.pickles import load_pickle
from modules.library.header import ModelFileError, read_header

CPU = torch.device("cpu")


class Tensors(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        """Floating point comes as float32. Raises ModelFileError."""


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
