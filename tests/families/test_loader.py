"""Which family a file is of."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.families.loader import read_model
from modules.library.header import ModelFileError
from tests.tiny import FP32


def test_a_file_of_no_known_family_is_named(tmp_path: Path) -> None:
    weight = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4)}
    save_file(weight, tmp_path / "style.safetensors")
    with pytest.raises(ModelFileError, match=r"style\.safetensors: not a checkpoint of a known family"):
        read_model(tmp_path / "style.safetensors", FP32)
