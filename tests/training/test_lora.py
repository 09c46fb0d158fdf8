"""Low-rank adaptation: nothing at first, then what the file says under kohya's names; the network stays as it is."""

import pytest
import torch
from torch.testing import assert_close

from modules.training.lora import ATTENTION, adapted, kohya_metadata, kohya_weights, make_adapter
from tools.starter.networks import UNetSizes, make_unet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32).eval()


def output_of(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    return unet(x, 500, context).sample


def lift(adapter) -> None:
    for number, (_, part) in enumerate(adapter.items()):
        torch.nn.init.normal_(part.up.weight, std=0.1, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_only_within_the_block(unet) -> None:
    before = output_of(unet)
    adapter = make_adapter(unet, rank=4, alpha=4)
    with adapted(unet, adapter):
        assert torch.equal(output_of(unet), before)
    lift(adapter)
    with adapted(unet, adapter):
        assert (output_of(unet) - before).abs().max() > 1e-3
    assert torch.equal(output_of(unet), before)


@torch.no_grad()
def test_the_file_holds_what_was_added(unet) -> None:
    ends = (*ATTENTION, "conv1")
    adapter = make_adapter(unet, rank=4, alpha=2, ends=ends)
    lift(adapter)
    with adapted(unet, adapter):
        wanted = output_of(unet)
    weights = kohya_weights(adapter)
    modules = {name.replace(".", "_"): module for name, module in unet.named_modules() if hasattr(module, "weight")}
    stems = {key.split(".")[0] for key in weights}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k" in stems
    assert "lora_unet_mid_block_resnets_0_conv1" in stems
    merged = {}
    for stem in stems:
        down, up = (weights[f"{stem}.lora_{side}.weight"].float() for side in ("down", "up"))
        scale = weights[f"{stem}.alpha"].item() / down.shape[0]
        delta = (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
        module = modules[stem.removeprefix("lora_unet_")]
        merged[module] = module.weight.clone()
        module.weight += scale * delta
    try:
        assert_close(output_of(unet), wanted, atol=1e-2, rtol=1e-2)  # the file is fp16
    finally:
        for module, weight in merged.items():
            module.weight.copy_(weight)


def test_only_the_adapter_learns(unet) -> None:
    unet.requires_grad_(False)
    adapter = make_adapter(unet, rank=2, alpha=2)
    lift(adapter)
    with adapted(unet, adapter):
        output_of(unet).square().mean().backward()
    assert all(part.down.weight.grad.abs().sum() > 0 for _, part in adapter.items())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_the_metadata_says_rank_and_base(unet) -> None:
    metadata = kohya_metadata(make_adapter(unet, rank=4, alpha=2), {"ss_sd_model_name": "starter.safetensors"})
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "2"
    assert metadata["ss_sd_model_name"] == "starter.safetensors"
    assert all(isinstance(value, str) for value in metadata.values())


def test_no_such_layer(unet) -> None:
    with pytest.raises(ValueError, match="no layer whose name ends with one of nowhere"):
        make_adapter(unet, rank=4, alpha=4, ends=("nowhere",))
