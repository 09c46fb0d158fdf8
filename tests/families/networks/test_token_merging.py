"""The whole is measured in tests/generation/test_golden_cases.py (tome_05); here are its parts."""

import pytest
import torch

from modules.families.family import Model
from modules.families.networks.token_merging import merging_for, ratio_for, token_merging
from tests.families.networks.test_applied import outputs
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model


def test_alike_tokens_are_joined_and_come_back():
    x = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(1))
    blocks = x[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :6, :7].reshape(2, 42, 5)
    merging = merging_for(blocks, (6, 7), 0.6)
    assert merging is not None
    joined = merging.together(blocks)
    assert joined.shape == (2, 42 - 25, 5)
    torch.testing.assert_close(merging.apart(joined), blocks)  # within a block all are the same


def test_what_is_joined_is_the_mean_of_its_group():
    x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])  # a 1 × 4 picture: no 2 × 2 at all
    assert merging_for(x, (1, 4), 0.5) is None
    merging = merging_for(x, (2, 2), 0.3)  # one of four joins the first
    assert merging is not None
    joined = merging.together(x)
    assert joined.shape == (1, 3, 2) and [1.5, 0.0] in joined[0].tolist()
    assert merging.apart(joined)[0].tolist() == [[1.5, 0.0], [1.5, 0.0], [0.0, 1.0], [0.0, 3.0]]


def test_only_at_full_resolution():
    assert merging_for(torch.randn(1, 16, 4), (8, 8), 0.5) is None
    assert merging_for(torch.randn(1, 64, 4), (8, 8), 0.5) is not None
    assert merging_for(torch.randn(1, 64, 4), (8, 8), 0.001) is None


def test_at_most_three_of_four():
    x = torch.randn(1, 64, 4)
    merging = merging_for(x, (8, 8), 0.9)
    assert merging is not None and merging.together(x).shape == (1, 16, 4)


def test_undone_also_after_an_exception(tiny_model: Model):
    plain = outputs(tiny_model)[1]
    with pytest.raises(KeyError), token_merging(tiny_model, 0.5):
        assert not torch.equal(outputs(tiny_model)[1], plain)
        raise KeyError
    assert torch.equal(outputs(tiny_model)[1], plain)
    with token_merging(tiny_model, 0):
        assert torch.equal(outputs(tiny_model)[1], plain)


def test_which_ratio_counts():
    assert ratio_for(0.1, 0.2, 0.3) == 0.1
    assert ratio_for(0.1, 0.2, 0.3, is_img2img=True) == 0.2
    assert ratio_for(0.1, 0, 0.3, is_img2img=True) == 0.1
    assert ratio_for(0.1, 0.2, 0.3, is_hires=True) == 0.3
    assert ratio_for(0.1, 0.2, 0, is_hires=True) == 0.1
