"""Checkpoints in GGUF: the numbers are those that llama.cpp's own package makes of the blocks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.checkpoints import save_gguf
from modules.families import ldm
from modules.families.gguf import dequantised, on_device
from modules.families.loader import read_model
from modules.library.gguf import QUANTISED, TYPES
from tests.tiny import FP32, save_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", sorted(QUANTISED))
def test_both_ways_of_dequantising_agree(kind: str) -> None:
    """In main memory and on a device; every kind that a header may name is known to both."""
    _, weights, size = next(entry for entry in TYPES.values() if entry[0] == kind)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 60, 16 * size, np.uint8))
    shape = (2, 8 * weights)
    there, here = on_device(raw, kind, shape), dequantised(raw, kind, shape, CPU)
    assert here.shape == shape
    assert here.dtype is torch.float32
    assert here.std() > 0
    torch.testing.assert_close(there, here, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_a_whole_checkpoint(tmp_path: Path, kind: str) -> None:
    """As stable-diffusion.cpp writes them: all parts, by the original names."""
    tensors = load_file(save_tiny(tmp_path))
    path = save_gguf(tmp_path / "whole.gguf", tensors, kind)
    config = tmp_path / "whole.yaml"  # GGUF has no place for what shapes don't tell
    config.write_text(
        "model: {params: {unet_config: {params: {num_heads: 4}}, cond_stage_config: {params: {heads: 2}}}}"
    )
    model: Any = read_model(path, replace(FP32, unet_dtype=torch.bfloat16), config)
    assert model.unet.config.attention_head_dim == 4
    quantised, state, compared = gguf.GGMLQuantizationType[kind], model.unet.state_dict(), 0
    for own, theirs in ldm.unet_names(state, 1):
        numbers = tensors[theirs].numpy()
        if numbers.ndim > 1 and numbers.size % 256 == 0:
            folded = numbers if numbers.shape[-1] % 32 == 0 else numbers.reshape(-1, 256)
            numbers = gguf.quants.dequantize(gguf.quants.quantize(folded, quantised), quantised).reshape(numbers.shape)
            compared += 1
        wanted = torch.from_numpy(numbers).to(torch.bfloat16).reshape(state[own].shape)
        assert torch.equal(state[own], wanted), theirs
    assert compared > 80
