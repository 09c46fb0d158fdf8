"""Reads PyTorch's old files (.pth, .pt), which are pickles and so could run code: nothing but tensors, numbers,
texts and plain containers comes in, and only after the archive's sizes were checked."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

MAX_BYTES = 4 * 2**30
MAX_ENTRIES = 100_000
SLACK = 2**20  # bytes that an archive may be larger unpacked than packed


class PickleError(ValueError):
    """A file that cannot be read. The message is a sentence without the file's name."""


def load_pickle(path: Path) -> Any:
    """On the CPU. Raises PickleError for what is no such file, is damaged, or contains code."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise PickleError(f"it has {size >> 20} MiB; at most {MAX_BYTES >> 20} MiB are read")
        if file.read(4) == b"PK\x03\x04":
            _check_archive(file, size)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise PickleError(
                "it contains code, or something else than weights, and is not opened; get a safetensors version"
            ) from None
        # Whatever a damaged archive or pickle makes torch's reader stumble over.
        except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise PickleError(f"damaged, or no file of PyTorch ({reason})") from None


def _check_archive(file: IO[bytes], size: int) -> None:
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise PickleError(f"a damaged zip archive ({error}); download it again") from None
    unpacked = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > size + SLACK or packed:
        raise PickleError(
            f"its archive would grow from {size} to {unpacked} bytes in {len(entries)} parts; PyTorch's never do"
        )
