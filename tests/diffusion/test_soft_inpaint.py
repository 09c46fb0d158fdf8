import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.diffusion.soft_inpaint import blend, distance, soft_mask


def test_the_mask_hardens_with_the_noise():
    mask = torch.tensor([0.0, 0.5, 1.0])
    assert soft_mask(mask, 14.0, 1, 0.5)[1] < 0.01 and soft_mask(mask, 0.01, 1, 0.5)[1] > 0.99
    assert soft_mask(mask, 3.0, 1, 0.5)[[0, 2]].tolist() == [0, 1]


def test_ends_are_the_parts_and_the_middle_keeps_their_length():
    original, new = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    original[0, 0], new[0, 1] = 3, 3
    for value, expected in ((0.0, original), (1.0, new)):
        assert torch.allclose(blend(original, new, torch.full((1, 1, 1, 1), value), 4), expected, atol=1e-4)
    middle = blend(original, new, torch.full((1, 1, 1, 1), 0.5), 1)
    assert abs(middle.norm().item() - 3) < 1e-4  # the plain mean would be 2.1


@given(st.floats(1, 32), st.floats(0, 1))
@settings(deadline=None)
def test_no_contrast_makes_it_explode(boost, value):
    x, y = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4, 3, 3)
    mixed = blend(x, y, torch.full((1, 1, 3, 3), value), boost)
    assert torch.isfinite(mixed).all() and mixed.dtype == torch.float32
    assert (distance(x * 0, mixed) <= distance(x * 0, x) * 1.001).all()
