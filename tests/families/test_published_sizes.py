"""The published checkpoints at their full sizes, as shapes without weights: from the names and shapes in the original
layout comes the network that was published, by its number of parameters."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from bench.checkpoints import Kind, original_tensors, random_parts
from modules.families import ldm, open_clip, sd2, sdxl
from modules.families.hints import Hints, config_of
from modules.families.loader import FAMILIES
from modules.library.header import Header, TensorInfo

REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
# Parameters, as the published model cards and files have them.
UNETS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}  # the refiner's card says "2.3 billion" only
HEADS = {"sd1": 8, "sd2": [5, 10, 20, 20], "sdxl": [5, 10, 20], "refiner": [6, 12, 24, 24]}
FAMILY = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "refiner": "SDXL refiner"}
VAE, CLIP_L, BIG_G = 83_653_863, 123_060_480, 694_659_840


def header_of(kind: Kind) -> Header:
    with torch.device("meta"):
        parts = random_parts(kind, {"unet": REFINER} if kind == "refiner" else {})
        tensors = original_tensors(kind, parts)
    return Header({name: TensorInfo("F16", tuple(tensor.shape), 0, 0) for name, tensor in tensors.items()})


def parameters(header: Header, prefix: str) -> int:
    return sum(torch.Size(shape).numel() for shape in ldm.shapes_under(header, prefix).values())


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "refiner"])
def test_published(kind: Kind) -> None:
    header = header_of(kind)
    assert [family.name for family in FAMILIES if family.matches(header)] == [FAMILY[kind]]
    hints = Hints() if kind == "sd1" else Hints().or_head_channels(64)
    base = config_of("sdxl" if kind == "refiner" else kind, "unet")
    config = ldm.unet_config(header, base, hints)
    assert config["attention_head_dim"] == HEADS[kind]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    built = sum(weight.numel() for weight in unet.parameters())
    assert built == parameters(header, ldm.UNET) == UNETS.get(kind, built)
    assert kind != "refiner" or 2.2e9 < built < 2.35e9
    assert {name for _, name in ldm.unet_names(unet.state_dict(), 2)} <= set(header.tensors)
    assert parameters(header, ldm.VAE) == VAE
    if kind in ("sd1", "sdxl"):
        prefix = ldm.clip_prefix(header, ldm.TEXT if kind == "sd1" else sdxl.CLIP_L)
        assert parameters(header, prefix) == CLIP_L
        assert ldm.clip_config(header, config_of("sd1", "text_encoder"), hints, prefix)["num_attention_heads"] == 12
    if kind != "sd1":
        prefix = {"sd2": sd2.TEXT, "sdxl": sdxl.BIG_G, "refiner": sdxl.REFINERS_BIG_G}[kind]
        text = open_clip.config(header, config_of("sdxl", "text_encoder_2"), hints, prefix)
        sizes = [text[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "projection_dim")]
        assert sizes == ([1024, 16, 24, 1024] if kind == "sd2" else [1280, 20, 32, 1280])
        if kind != "sd2":
            assert parameters(header, prefix) - 1 == BIG_G  # logit_scale is no part of it here
