"""The old files of PyTorch (.pt, .bin, .ckpt) that networks come in, with errors that name the file."""

import os
from pathlib import Path
from typing import Any

import torch

from modules.library.header import ModelFileError, open_regular, sniff
from modules.runtime import pickles

# What A1111's and the original textual inversion's files hold beside tensors; plain containers.
CONTAINERS: list[Any] = [torch.nn.ParameterDict, torch.nn.ParameterList, torch.nn.Parameter]


def load_pickle(path: Path) -> Any:
    """On the CPU. Raises ModelFileError for what is no such file, is damaged, or contains code."""
    with os.fdopen(open_regular(path), "rb") as file:
        start = file.read(256)
        if not start:
            raise ModelFileError(path, "this file is empty: the download failed; download it again")
        if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80" and (what := sniff(start)):
            raise ModelFileError(path, what)
        file.seek(0)
        try:
            return pickles.load_pickle(file, CONTAINERS)
        except pickles.PickleError as error:
            raise ModelFileError(path, str(error)) from None
