"""Reads the old files of PyTorch (.pt, .bin, .ckpt), which are pickles and so could run code: only tensors, numbers,
texts and containers come in, and only after the archive's sizes have been checked."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from modules.library.header import ModelFileError, open_regular, sniff

MAX_BYTES = 8 * 2**30
MAX_PICKLE = 64 * 2**20  # bytes of the part that describes the tensors
MAX_ENTRIES = 100_000
# What A1111's and the original textual inversion's files hold beside tensors; plain containers.
CONTAINERS: list[Any] = [torch.nn.ParameterDict, torch.nn.ParameterList, torch.nn.Parameter]


def load_pickle(path: Path) -> Any:
    """On the CPU. Raises ModelFileError for what is no such file, is damaged, or contains code."""
    with os.fdopen(open_regular(path), "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(256)
        _check(path, file, size, start)
        file.seek(0)
        try:
            with torch.serialization.safe_globals(CONTAINERS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelFileError(path, _refusal(str(error))) from None
        # Whatever a damaged archive or pickle makes torch's reader stumble over.
        except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ModelFileError(path, f"damaged, or no file of PyTorch ({reason})") from None


def _check(path: Path, file: Any, size: int, start: bytes) -> None:
    if size == 0:
        raise ModelFileError(path, "this file is empty: the download failed; download it again")
    if size > MAX_BYTES:
        raise ModelFileError(path, f"it has {size >> 20} MiB; the limit is {MAX_BYTES >> 20} MiB")
    if start.startswith(b"PK\x03\x04"):
        _check_archive(path, file, size)
    elif start[:1] != b"\x80":
        raise ModelFileError(path, sniff(start) or "this is no file of PyTorch: neither a zip archive nor a pickle")


def _check_archive(path: Path, file: Any, size: int) -> None:
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ModelFileError(path, f"a damaged zip archive ({error}); download it again") from None
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > max(2 * size, size + 2**20) or unpacked > MAX_BYTES:
        raise ModelFileError(
            path, f"its archive would grow from {size} to {unpacked} bytes in {len(entries)} parts; that is refused"
        )
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if any(entry.file_size > MAX_PICKLE for entry in pickles):
        raise ModelFileError(path, f"its description has more than {MAX_PICKLE >> 20} MiB; that is refused")


def _refusal(error: str) -> str:
    found = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global):? (\S+)|instantiate (\S+)", error)
    what = f" ({next(filter(None, found.groups()))})" if found else ""
    return f"it contains code{what}, or something else than weights, and is never opened; get a safetensors version"
