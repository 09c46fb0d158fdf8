"""Reads PyTorch's old files (.pth, .pt, .bin), which are pickles and so could run code: nothing but tensors, numbers,
texts and plain containers comes in, and only after the archive's sizes were checked. The one reader of such files."""

import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import torch

MAX_BYTES = 8 * 2**30
MAX_PICKLE = 64 * 2**20  # bytes of the part that describes the tensors
MAX_ENTRIES = 100_000
SLACK = 2**20  # bytes that an archive may be larger unpacked than packed


class PickleError(ValueError):
    """A file that cannot be read. The message is a sentence without the file's name."""


def load_pickle(file: IO[bytes], containers: Sequence[Any] = ()) -> Any:
    """On the CPU. `containers`: classes that may come in beside tensors. Raises PickleError for what is no such file,
    is damaged, or contains code."""
    size, start = os.fstat(file.fileno()).st_size, file.read(4)
    if size > MAX_BYTES:
        raise PickleError(f"it has {size >> 20} MiB; the limit is {MAX_BYTES >> 20} MiB")
    if start == b"PK\x03\x04":
        _check_archive(file, size)
    elif start[:1] != b"\x80":
        raise PickleError("this is no file of PyTorch: neither a zip archive nor a pickle")
    file.seek(0)
    try:
        with torch.serialization.safe_globals(list(containers)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickleError(_refusal(str(error))) from None
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
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)  # PyTorch stores, it never packs
    if len(entries) > MAX_ENTRIES or packed or unpacked > size + SLACK:
        raise PickleError(
            f"its archive would grow from {size} to {unpacked} bytes in {len(entries)} parts; that is refused"
        )
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE for entry in entries):
        raise PickleError(f"its description has more than {MAX_PICKLE >> 20} MiB; that is refused")


def _refusal(error: str) -> str:
    found = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global):? (\S+)|instantiate (\S+)", error)
    what = f" ({next(filter(None, found.groups()))})" if found else ""
    return f"it contains code{what}, or something else than weights, and is never opened; get a safetensors version"
