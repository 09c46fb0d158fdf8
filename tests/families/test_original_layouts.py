"""The single-file layouts: diffusers' own converters, which know nothing of ours, read what we write for the tests."""

from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as oracle
from torch import Tensor

from bench.checkpoints import Kind, original_tensors
from modules.families import sd2, sdxl
from tests.tiny import tiny_parts


def assert_same(theirs: dict[str, Tensor], network: Any) -> None:
    ours = network.state_dict()
    assert set(theirs) >= set(ours)
    for name, tensor in ours.items():
        assert torch.equal(theirs[name].reshape(tensor.shape), tensor), name


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "refiner"])
def test_unet_and_vae(kind: Kind) -> None:
    parts = tiny_parts(kind)
    tensors = original_tensors(kind, parts)
    assert_same(oracle.convert_ldm_unet_checkpoint(dict(tensors), dict(parts.unet.config)), parts.unet)
    assert_same(oracle.convert_ldm_vae_checkpoint(dict(tensors), dict(parts.vae.config)), parts.vae)


def test_open_clip() -> None:
    for kind, prefix in (("sd2", sd2.TEXT), ("sdxl", sdxl.BIG_G), ("refiner", sdxl.REFINERS_BIG_G)):
        parts = tiny_parts(kind)  # type: ignore[arg-type]
        network = parts.text_encoder if kind == "sd2" else parts.text_encoder_2
        tensors = original_tensors(kind, parts)  # type: ignore[arg-type]
        if kind == "sd2":
            tensors.pop(f"{prefix}text_projection")  # the converter takes the width from it
        else:
            # Its rows are the encoder's width; the converter cuts the fused weights by them.
            assert tensors[f"{prefix}text_projection"].shape == (32, 48)
        read = oracle.convert_open_clip_checkpoint(network, tensors, prefix)
        names = {name.removeprefix("text_model."): tensor for name, tensor in read.items()}
        assert_same({name: names[name.removeprefix("text_model.")] for name in network.state_dict()}, network)
