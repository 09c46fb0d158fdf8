"""Reads PyTorch's old files (.pth, .pt, .bin), which are pickles and so could run code: nothing but tensors, numbers,
texts and plain containers comes in, and only after the archive's sizes were checked. The one reader of such files."""

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from modules.runtime.archive import PickleError as PickleError
from modules.runtime.archive import check_archive

MAX_BYTES = 8 * 2**30
MAX_MAPPED_BYTES = 64 * 2**30


def load_pickle(file: IO[bytes], containers: Sequence[Any] = (), mapped: Path | None = None) -> Any:
    """On the CPU. `containers`: classes, or (class, name in the file), that may come in beside tensors. `mapped`: the
    file's own path; its tensors then stay in the file until they are used. Raises PickleError for what is no such file,
    is damaged, or contains code."""
    size, start = os.fstat(file.fileno()).st_size, file.read(4)
    limit = MAX_MAPPED_BYTES if mapped else MAX_BYTES
    if size > limit:
        raise PickleError(f"it has {size >> 20} MiB; the limit is {limit >> 20} MiB")
    if start == b"PK\x03\x04":
        check_archive(file, size)
    elif mapped:
        raise PickleError("this is no file of PyTorch 1.6 or newer: no zip archive; convert it to safetensors")
    elif start[:1] != b"\x80":
        raise PickleError("this is no file of PyTorch: neither a zip archive nor a pickle")
    file.seek(0)
    try:
        with torch.serialization.safe_globals(list(containers)):
            source = str(mapped) if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=bool(mapped))
    except pickle.UnpicklingError as error:
        raise PickleError(_refusal(str(error))) from None
    # Whatever a damaged archive or pickle makes torch's reader stumble over.
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise PickleError(f"damaged, or no file of PyTorch ({reason})") from None


def _refusal(error: str) -> str:
    found = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global):? (\S+)|instantiate (\S+)", error)
    what = f" ({next(filter(None, found.groups()))})" if found else ""
    return f"it contains code{what}, or something else than weights, and is never opened; get a safetensors version"
