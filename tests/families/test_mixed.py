"""A VAE that multiplies in bf16: much nearer to fp32 than bf16 alone; only where machine and flags want it."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modules.families.loader import read_model
from modules.families.mixed import HalfConv2d, MixedResidual
from modules.families.vae import Limits
from modules.runtime.device import Card, cpu_has_bf16, placement_from
from modules.runtime.flags import parse
from tests.tiny import FP32

STARTER = Path(__file__).parents[2] / "models" / "Stable-diffusion" / "starter.safetensors"
CPU = torch.device("cpu")
MIXED = replace(FP32, vae_mixed=True)
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bf16: the VAE stays in fp32 there")


def noise_of(made: Tensor, exact: Tensor) -> float:
    """Decibels below a whole range of 0–1."""
    return float(-10 * torch.log10((made - exact).square().mean()))


@needs_bf16
@torch.inference_mode()
def test_the_starters_pictures_are_those_of_fp32():
    """60 dB: not one pixel in ten is another one of 256 values, and then by one."""
    exact, other = read_model(STARTER, FP32), read_model(STARTER, MIXED)
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(1, 4, 4, 4), size=(24, 16), mode="bilinear")
    for latents in (torch.randn(1, 4, 16, 16), smooth):
        whole = exact.decode(latents)
        halves = deepcopy(exact.vae.network).bfloat16()
        plain = ((halves.decode((latents / exact.latent.scale).bfloat16())[0].float() + 1) / 2).clamp(0, 1)
        made = other.decode(latents)
        assert math.inf > noise_of(made, whole) > max(60, noise_of(plain, whole) + 5)
        values = [(x * 255).round() for x in (made, whole)]
        assert (values[0] - values[1]).abs().max() <= 2
        pixels, drawn = whole, torch.zeros_like(latents)
        assert torch.allclose(other.encode_image(pixels, drawn), exact.encode_image(pixels, drawn), atol=0.03)


@needs_bf16
@torch.inference_mode()
def test_tile_by_tile_too():
    exact, other = read_model(STARTER, FP32), read_model(STARTER, MIXED)
    exact.vae.limits = other.vae.limits = Limits(tile=16)
    latents = torch.randn(1, 4, 24, 20, generator=torch.Generator().manual_seed(2))
    assert math.inf > noise_of(other.decode(latents), exact.decode(latents)) > 55
    assert other.vae.tiles_used


def test_it_is_loaded_so_where_the_placement_says_so():
    network = read_model(STARTER, MIXED).vae.network
    kinds = {type(layer) for layer in network.modules()}
    assert {HalfConv2d, MixedResidual} <= kinds and network.dtype is torch.float32
    assert type(network.decoder.conv_out) is not HalfConv2d
    assert HalfConv2d not in {type(layer) for layer in read_model(STARTER, FP32).vae.network.modules()}


def test_only_processors_with_bf16_and_unless_the_flags_forbid_it():
    def wanted(*flags: str, device: str = "cpu", bf16: bool = True) -> bool:
        return placement_from(parse(list(flags)), Card(torch.device(device), has_bf16=bf16)).vae_mixed

    assert wanted()
    assert not any((wanted("--no-half"), wanted("--no-half-vae"), wanted("--precision", "full"), wanted(bf16=False)))
    assert not wanted(device="cuda") and not wanted("--no-half-vae", device="cuda")
