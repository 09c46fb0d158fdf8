"""GGUF's blocks become numbers again; the formulas are llama.cpp's own package's and diffusers'."""

import torch
from torch import Tensor

from modules.library.gguf import TYPES


def dequantised(raw: Tensor, kind: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """raw: (bytes,) uint8 of one tensor of this kind (library/gguf.py) -> float32 of the shape, on the device."""
    if device.type != "cpu":
        return on_device(raw.to(device), kind, shape)
    # Loaded only where a file of this format is; so are those below.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType[kind])).view(shape)


def on_device(raw: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    """The same, where the bytes are."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType

    _, weights, size = next(entry for entry in TYPES.values() if entry[0] == kind)
    function = dequantize_functions[GGMLQuantizationType[kind]]
    numbers: Tensor = function(raw.view(-1, size), weights, size, dtype=torch.float32)
    return numbers.reshape(shape)
