"""Which family a file is of, and the dtypes that it is loaded in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.families.loader import read_model
from modules.library.header import ModelFileError
from modules.runtime.device import Part, Placement
from tests.tiny import FP32, HEADS, save_tiny, save_tiny_of, tiny_parts


def test_a_file_of_no_known_family_is_named(tmp_path: Path) -> None:
    weight = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4)}
    save_file(weight, tmp_path / "style.safetensors")
    with pytest.raises(ModelFileError, match=r"style\.safetensors: not a checkpoint of a known family"):
        read_model(tmp_path / "style.safetensors", FP32)


HALF = Placement(torch.device("cpu"), torch.float16, torch.float16, torch.float16, False)
LARGE = {
    "unet": "model.diffusion_model.out.2.bias",
    "text": "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    "vae": "first_stage_model.decoder.conv_out.bias",
}


@pytest.mark.parametrize("part", LARGE)
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_what_fp16_cannot_hold_is_loaded_wider(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: Part, wide: torch.dtype
) -> None:
    """As it is in some checkpoints that were saved in bf16; the other parts stay in fp16."""
    path = save_tiny(tmp_path, "large.safetensors")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    tensors[LARGE[part]][0] = 1e5
    save_file(tensors, path, HEADS)
    model: Any = read_model(path, replace(HALF, wide_dtype=wide))
    dtypes = {name: network.dtype for name, network in model.components.items()}
    names = {"unet": "unet", "text": "text_encoder", "vae": "vae"}
    assert dtypes == {**dict.fromkeys(dtypes, torch.float16), names[part]: wide}
    assert float(model.components[names[part]].state_dict()[OWN[part]][0]) == pytest.approx(1e5, rel=0.01)
    assert model.placement.dtype_of(part) is wide
    assert f"'{LARGE[part]}' holds values beyond the range of float16" in caplog.text


OWN = {"unet": "conv_out.bias", "text": "final_layer_norm.bias", "vae": "decoder.conv_out.bias"}


def test_sd2s_unet_runs_in_bf16_where_the_card_multiplies_it(tmp_path: Path) -> None:
    path = save_tiny_of(tmp_path / "two.safetensors", "sd2", tiny_parts("sd2"))
    for wide, unet in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)):
        model: Any = read_model(path, replace(HALF, wide_dtype=wide))
        found = [network.dtype for network in (model.unet, model.vae.network, model.encoder.network)]
        assert found == [unet, torch.float16, torch.float16]
    model = read_model(save_tiny(tmp_path, "one.safetensors"), replace(HALF, wide_dtype=torch.bfloat16))
    assert model.unet.dtype is torch.float16
