"""Checkpoints and VAEs on the disk, whatever their format: a header that tells what is in them, and their tensors. What
is no safetensors file looks here as if it were one."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from modules.families import weights
from modules.families.folders import folder_header, is_vae_of_diffusers, vae_places
from modules.families.hints import LayoutError
from modules.families.weights import DTYPES, INTEGERS, RenamedFiles, RenamedHeader, Weights
from modules.library.gguf import is_gguf, read_gguf_header
from modules.library.header import Header, ModelFileError, TensorInfo, open_regular, read_header
from modules.runtime.archive import PickleError
from modules.runtime.pickles import load_pickle

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
MAPPED_ANEW = 128 * 2**20  # bytes
_NAMES = {dtype: name for table in (DTYPES, INTEGERS) for name, dtype in table.items()}


class _Callback:
    """In the place of a class of PyTorch Lightning, whose name the first checkpoints of Stable Diffusion mention."""


CONTAINERS = ((_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),)


def header_of(path: Path) -> Header:
    """Raises ModelFileError for what is no checkpoint in a known format, or not a whole one."""
    if path.is_dir():
        return folder_header(path, header_of)
    if is_gguf(path):
        return read_gguf_header(path)
    if path.suffix.rstrip().lower() not in PICKLED or not _is_archive(path):
        return read_header(path)
    tensors = _load(path)
    infos = {
        name: TensorInfo(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in tensors.items()
    }
    return Header(infos, {}, path.stat().st_size)


def vae_header(path: Path) -> Header:
    """Of a VAE in a file of its own, or inside a checkpoint; by the names of the original layout. Raises
    ModelFileError."""
    header = header_of(path)
    if not is_vae_of_diffusers(header):
        return header
    try:
        places = vae_places({name: (path, header, name) for name in header.tensors}, "")
    except LayoutError as error:
        raise ModelFileError(path, str(error)) from None
    return RenamedHeader(places, {}, header.size)


@contextmanager
def opened(path: Path, header: Header, read: Callable[[int], None] = lambda count: None) -> Iterator[Weights]:
    """The tensors, for the time of a load. `read` is told how many bytes each reading took; what it raises
    ends the load. A file that changed since its header was read raises ModelFileError."""
    with _opened(path, header) as file:
        file.watch = read
        yield file


@contextmanager
def _opened(path: Path, header: Header) -> Iterator[Weights]:
    if isinstance(header, RenamedHeader):
        parts = {place: own for place, own, _ in header.places.values()}
        with ExitStack() as stack:
            files = {place: stack.enter_context(_opened(place, own)) for place, own in parts.items()}
            yield RenamedFiles(path, header, files)
    elif path.suffix.rstrip().lower() in PICKLED and _is_archive(path):
        if path.stat().st_size != header.size:
            raise ModelFileError(path, "it changed while it was being loaded; is it still being downloaded?")
        yield PickledFile(path, header, _load(path))
    else:
        with weights.opened(path, header) as file:
            yield file


class PickledFile(Weights):
    """An open .ckpt or .pt file."""

    def __init__(self, path: Path, header: Header, tensors: Mapping[str, Tensor]):
        super().__init__(path, header)
        self._tensors = tensors
        self._done = 0  # bytes that nobody needs any more

    def done_with(self, name: str) -> None:
        """PyTorch maps the whole file: its pages go when it is mapped anew."""
        self._done += self._tensors[name].nbytes
        if self._done > MAPPED_ANEW:
            self._tensors, self._done = _load(self.path), 0

    def _stored(self, name: str, info: TensorInfo, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._tensors[name].detach()


def _is_archive(path: Path) -> bool:
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors by name, still in the file."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            loaded = load_pickle(file, CONTAINERS, mapped=path)
    except PickleError as error:
        raise ModelFileError(path, str(error)) from None
    for _ in range(2):  # some were saved twice
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise ModelFileError(path, f"it holds a {type(loaded).__name__}; tensors by name were expected")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelFileError(path, "there are no tensors in this file")
    return tensors
