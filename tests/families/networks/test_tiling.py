import pytest
import torch

from modules.families.family import Model
from modules.families.networks.tiling import tiling
from tests.families.networks.test_applied import outputs
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


def test_a_rolled_latent_gives_a_rolled_picture(tiny_model: Model):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode(), tiling(tiny_model):
        picture = tiny_model.decode(latent)
        rolled = tiny_model.decode(latent.roll((3, 5), dims=(2, 3)))
        torch.testing.assert_close(rolled, picture.roll((24, 40), dims=(2, 3)), rtol=1e-3, atol=1e-3)


def test_undone_also_after_an_exception(tiny_model: Model):
    plain = outputs(tiny_model)[1]
    with pytest.raises(KeyError), tiling(tiny_model):
        assert not torch.equal(outputs(tiny_model)[1], plain)
        raise KeyError
    with tiling(tiny_model, False):
        assert torch.equal(outputs(tiny_model)[1], plain)
