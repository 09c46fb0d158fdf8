"""A VAE that leaves the range of its number format goes on in another, and says so."""

import copy
from typing import Any

import pytest
import torch

from modules.families.vae import DECODER, WORKSPACE, Limits, Vae
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

Z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def overflowing(tiny_model: Any) -> Vae:
    """In fp16, with weights whose results fp16 can't hold; fp32 and bf16 can, and norms make them small again."""
    vae: Vae = tiny_model.vae
    network = copy.deepcopy(vae.network)
    with torch.no_grad():
        network.decoder.conv_in.weight.mul_(1e5)
        network.encoder.conv_in.weight.mul_(1e5)
    return Vae(network.half(), vae.latent, vae.device)


def test_an_overflow_is_found_done_again_and_told(overflowing: Vae) -> None:
    with torch.inference_mode():
        pixels = overflowing.decode(Z)
    assert pixels.isfinite().all() and overflowing.network.dtype is torch.float32
    assert list(overflowing.said) == ["the VAE overflowed in float16; it goes on in float32"]
    with torch.inference_mode():
        assert torch.equal(overflowing.decode(Z), pixels)
    assert len(overflowing.said) == 1  # it stays as it is
    with torch.no_grad():
        overflowing.network.decoder.conv_in.weight.mul_(1)  # an ordinary weight still


def test_encoding_too(overflowing: Vae) -> None:
    with torch.inference_mode():
        latent = overflowing.encode(torch.rand(1, 3, 64, 64), torch.zeros(1, 4, 8, 8))
    assert latent.isfinite().all() and overflowing.said


def test_bfloat16_first_where_it_is_wanted(overflowing: Vae) -> None:
    overflowing.limits = Limits(instead=(torch.bfloat16, torch.float32))
    with torch.inference_mode():
        assert overflowing.decode(Z).isfinite().all()
    assert list(overflowing.said) == ["the VAE overflowed in float16; it goes on in bfloat16"]


def test_not_where_it_is_not_wanted(overflowing: Vae) -> None:
    overflowing.limits = Limits(instead=())
    with torch.inference_mode():
        assert not overflowing.decode(Z).isfinite().all()
    assert overflowing.network.dtype is torch.float16 and not overflowing.said


def test_what_came_as_no_number_is_not_the_vaes_fault(overflowing: Vae) -> None:
    with torch.inference_mode():
        overflowing.decode(torch.full((1, 4, 8, 8), float("nan")))
    assert overflowing.network.dtype is torch.float16


def test_in_fp32_it_takes_tiles_if_the_room_demands_it(overflowing: Vae) -> None:
    z = torch.randn(1, 4, 16, 40, generator=torch.Generator().manual_seed(3))
    each = DECODER * overflowing.network.config.block_out_channels[0] * 4 * WORKSPACE
    for room, tiles in ((int(each * 128 * 320), None), (int(each * 128 * 256), 256)):
        vae = Vae(copy.deepcopy(overflowing.network), overflowing.latent, overflowing.device)
        vae.limits = Limits(None, (torch.float32,), torch.float16, lambda room=room: room)  # type: ignore[misc]
        with torch.inference_mode():
            assert vae.decode(z).isfinite().all()
        assert vae.tiles_used == tiles
