import pytest
import torch

from modules.generation.latent_upscale import upscale_latent
from modules.library.upscalers import LATENT_UPSCALE_MODES


@pytest.mark.parametrize("name", LATENT_UPSCALE_MODES)
def test_every_mode_gives_the_size(name):
    latent = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(0))
    assert upscale_latent(latent, 9, 7, name).shape == (2, 4, 7, 9)
    assert torch.allclose(upscale_latent(torch.ones(1, 4, 6, 4), 8, 12, name), torch.ones(1, 4, 12, 8), atol=1e-6)


def test_nearest_repeats():
    latent = torch.arange(4.0).view(1, 1, 2, 2)
    assert upscale_latent(latent, 4, 4, "Latent (nearest)")[0, 0, 0].tolist() == [0, 0, 1, 1]
