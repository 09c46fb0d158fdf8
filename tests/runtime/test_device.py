"""Placement: what the flags decide."""

import torch

from modules.runtime.device import cpu_has_bf16, placement_from
from modules.runtime.flags import parse


def test_use_cpu_and_no_half_give_fp32_everywhere() -> None:
    placement = placement_from(parse(["--use-cpu", "all", "--no-half"]))
    assert (placement.device.type, placement.unet_dtype, placement.vae_dtype) == ("cpu", torch.float32, torch.float32)
    assert not placement.channels_last


def test_precision_full_is_no_half() -> None:
    assert placement_from(parse(["--use-cpu", "all", "--precision", "full"])).unet_dtype is torch.float32


def test_a_cpu_with_bf16_uses_it_for_the_unet_only() -> None:
    placement = placement_from(parse(["--use-cpu", "all"]))
    assert placement.unet_dtype is (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert placement.text_dtype is placement.vae_dtype is torch.float32
