"""Real checkpoints of random weights, small enough for every test: of SD 1.x as fixtures `tiny_folder`, `tiny_model`;
of the other families by `save_tiny_of`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checkpoints import Kind, Parts, networks, random_parts, save_original, save_single_file
from modules.families.family import UNTOLD
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
OPEN_CLIP = {**TEXT, "projection_dim": 48}
XL_UNET = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 64,  # both text encoders side by side
    "attention_head_dim": [2, 4, 4],
    "projection_class_embeddings_input_dim": 48 + 6 * 256,
}
REFINER_UNET = {**XL_UNET, "cross_attention_dim": 32, "projection_class_embeddings_input_dim": 48 + 5 * 256}
SIZES: dict[Kind, dict[str, dict[str, Any]]] = {
    "sd1": {"unet": UNET, "vae": VAE, "text_encoder": TEXT},
    "sd2": {"unet": {**UNET, "attention_head_dim": [2, 4, 4]}, "vae": VAE, "text_encoder": TEXT},
    "sdxl": {"unet": XL_UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": OPEN_CLIP},
    "refiner": {"unet": REFINER_UNET, "vae": VAE, "text_encoder_2": OPEN_CLIP},
}
_TWO = {"num_attention_heads": 2}
OTHER_HEADS = {
    "easel.config": json.dumps({"unet": {"num_head_channels": 16}, "text_encoder": _TWO, "text_encoder_2": _TWO})
}
FP32 = Placement(torch.device("cpu"), torch.float32, torch.float32, torch.float32, channels_last=False)


def save_tiny(folder: Path, name: str = "tiny.safetensors", seed: int = 0) -> Path:
    return save_single_file(folder / name, *networks(UNET, VAE, TEXT, seed), torch.float32, HEADS)


def tiny_parts(kind: Kind, seed: int = 0, in_channels: int = 4) -> Parts:
    sizes = SIZES[kind]
    return random_parts(kind, {**sizes, "unet": {**sizes["unet"], "in_channels": in_channels}}, seed)


def save_tiny_of(path: Path, kind: Kind, parts: Parts, metadata: dict[str, str] | None = None, **more: Tensor) -> Path:
    """In the original single-file layout; `more`: further tensors, by name."""
    heads = HEADS if kind == "sd1" else OTHER_HEADS
    return save_original(path, kind, parts, torch.float32, {**heads, **(metadata or {})}, more)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):  # type: ignore[no-untyped-def]
    path = tiny_folder / "tiny.safetensors"
    return SD1Family().load(path, read_header(path), None, FP32, UNTOLD)
