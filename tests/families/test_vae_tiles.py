"""Pictures through the starter's VAE in tiles: as whole, without seams, and within their budget."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from modules.families import vae_tiles
from modules.families.loader import read_model
from modules.families.vae import Limits, Vae
from modules.families.vae_tiles import ramp, shares, starts
from modules.runtime.memory import Counting
from tests.tiny import FP32

STARTER = Path(__file__).parents[2] / "models" / "Stable-diffusion" / "starter.safetensors"
SIZE = 320


@pytest.fixture(scope="module")
def vae() -> Vae:
    model = read_model(STARTER, FP32)
    assert isinstance(model.vae, Vae)  # type: ignore[attr-defined]
    return model.vae  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """(1, 3, SIZE, SIZE) in 0–1: a sky that gets lighter, and things in it. Dark on one side, bright on the other."""
    across = np.linspace(0.1, 0.9, SIZE)[None, :, None] * np.linspace(0.6, 1.0, SIZE)[:, None, None]
    image = Image.fromarray((np.broadcast_to(across, (SIZE, SIZE, 3)) * [200, 220, 255]).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 150, 170), fill=(200, 30, 40))
    draw.rectangle((180, 150, 300, 290), fill=(30, 120, 60))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def latent(vae: Vae, picture: Tensor) -> Tensor:
    vae.limits = Limits()
    with torch.inference_mode():
        return vae.encode(picture, torch.zeros(1, 4, SIZE // 8, SIZE // 8))


def psnr(one: Tensor, two: Tensor) -> float:
    return float(-10 * torch.log10((one - two).square().mean()))


def test_decoded_in_tiles(vae: Vae, latent: Tensor) -> None:
    vae.limits = Limits()
    with torch.inference_mode(), Counting() as counting:
        whole, most = vae.decode(latent), counting.peak
        counting.peak = counting.live
        vae.limits = Limits(tile=24)
        tiles, most_of_tiles = vae.decode(latent), counting.peak
    assert psnr(whole, tiles) > 33
    assert vae.tiles_used == 192
    assert most_of_tiles < 0.6 * most
    # No seam: where tiles meet, neighbours differ no more from those of the whole picture than elsewhere.
    across = ((tiles - whole).diff(dim=3)).abs().mean(dim=(0, 1, 2))
    meeting = [start * 8 for start in starts(SIZE // 8, 24)[1:]]
    assert meeting and all(across[max(0, at - 2) : at + 2].max() < 4 * across.mean() for at in meeting)


def test_norms_of_the_whole_picture_are_better_than_each_tiles_own(
    vae: Vae, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        vae.limits = Limits()
        whole = vae.decode(latent)
        vae.limits = Limits(tile=24)
        with_common = psnr(whole, vae.decode(latent))
        monkeypatch.setattr(vae_tiles._Norms, "settle", lambda norms: None)
        assert with_common > psnr(whole, vae.decode(latent))


def test_encoded_in_tiles(vae: Vae, picture: Tensor, latent: Tensor) -> None:
    vae.limits = Limits(tile=24)
    with torch.inference_mode():
        tiles = vae.encode(picture, torch.zeros_like(latent))
    assert tiles.shape == latent.shape
    assert (tiles - latent).norm() < 0.06 * latent.norm()


def test_nothing_stays_behind(vae: Vae) -> None:
    assert not any("forward" in module.__dict__ for module in vae.network.modules())


def test_one_tile_that_is_large_enough_changes_nothing(vae: Vae, latent: Tensor) -> None:
    with torch.inference_mode():
        vae.limits = Limits()
        whole = vae.decode(latent)
        vae.limits, vae.tiles_used = Limits(tile=SIZE // 8), None
        assert torch.equal(vae.decode(latent), whole) and vae.tiles_used is None


@pytest.mark.parametrize("length, tile", [(40, 24), (96, 64), (94, 32), (128, 96), (20, 24), (65, 64)])
def test_tiles_cover_all_and_overlap(length: int, tile: int) -> None:
    found = starts(length, tile)
    covered = [cell for start in found for cell in range(start, min(start + tile, length))]
    assert set(covered) == set(range(length)) and found[0] == 0
    assert all(second - first <= tile - tile // 4 for first, second in zip(found, found[1:], strict=False))
    parts = shares(length, tile)
    assert [cell for start, size in parts for cell in range(start, start + size)] == list(range(length))
    assert max(size for _, size in parts) <= tile


def test_weights_fall_towards_neighbours_only() -> None:
    weights = ramp(16, before=False, after=True, device=torch.device("cpu"))
    assert torch.equal(weights[:12], torch.ones(12)) and bool((weights[12:].diff() < 0).all())
