"""A real SD 1.x checkpoint of random weights, small enough for every test: fixtures `tiny_folder`, `tiny_model`."""

import json
from pathlib import Path

import pytest
import torch

from bench.checkpoints import networks, save_single_file
from modules.families.sd1 import SD1Family
from modules.library.header import read_header
from modules.runtime.device import Placement

UNET = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
TEXT = {
    "hidden_size": 32,
    "projection_dim": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
HEADS = {"easel.config": json.dumps({"unet": {"num_heads": 4}, "text_encoder": {"num_attention_heads": 2}})}
FP32 = Placement(torch.device("cpu"), torch.float32, torch.float32, torch.float32, channels_last=False)


def save_tiny(folder: Path, name: str = "tiny.safetensors", seed: int = 0) -> Path:
    return save_single_file(folder / name, *networks(UNET, VAE, TEXT, seed), torch.float32, HEADS)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):  # type: ignore[no-untyped-def]
    path = tiny_folder / "tiny.safetensors"
    return SD1Family().load(path, read_header(path), None, FP32, lambda part: None)
