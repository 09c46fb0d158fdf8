"""Brownian paths against the increments that A1111 drew, and the laws of Brownian motion."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from modules.diffusion.brownian import BrownianPath, brownian_noise
from modules.diffusion.noise import Source

DATA = json.loads((Path(__file__).parents[1] / "data" / "noise.json").read_text())
LEVELS = ("14.6146", "6.5", "2.0", "0.5", "0.0292")
SHAPE = (4, 24, 16)


@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_increments_are_those_of_a1111(source: Source) -> None:
    sigmas = torch.tensor([*map(float, LEVELS), 0.0])
    between = brownian_noise(SHAPE, [42, 43], sigmas, source)
    for (a, b), (sigma, sigma_next) in zip(itertools.pairwise(LEVELS), itertools.pairwise(sigmas), strict=False):
        found, wanted = between(sigma, sigma_next), DATA[f"{source}|brownian42-43|{a}->{b}"]
        assert list(found.shape) == wanted["shape"]
        for image, numbers in zip(found, wanted["images"], strict=True):
            ours = torch.cat([image.flatten()[:8], image[1, 9:15, 5], image.flatten()[-8:]])
            theirs = torch.tensor(numbers["head"] + numbers["middle"] + numbers["tail"])
            torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


def test_the_path_does_not_depend_on_where_it_is_asked() -> None:
    one, other = BrownianPath(SHAPE, 7, 0.1, 10.0), BrownianPath(SHAPE, 7, 0.1, 10.0)
    for t in (9.0, 3.3, 0.2, 5.0, 7.77, 1.0):
        one(t)
    torch.testing.assert_close(one(3.3), other(3.3), rtol=0, atol=0)


def test_increments_are_independent_and_grow_with_the_root_of_the_distance() -> None:
    path = BrownianPath((4, 64, 64), 3, 0.0, 16.0)
    steps = [path(b) - path(a) for a, b in ((0.0, 1.0), (1.0, 5.0), (5.0, 5.5), (5.5, 16.0))]
    for step, length in zip(steps, (1.0, 4.0, 0.5, 10.5), strict=True):
        assert float(step.std()) == pytest.approx(length**0.5, rel=0.05)
    for a, b in itertools.combinations(steps, 2):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.04


def test_a_path_ends_where_its_levels_end() -> None:
    path = BrownianPath(SHAPE, 3, 0.5, 2.0)
    assert torch.equal(path(0.4), path(0.5))
    assert torch.equal(path(99.0), path(2.0))
    assert not path(0.5).any()


def test_a_picture_has_the_same_path_alone_and_in_a_batch() -> None:
    sigmas = torch.tensor([10.0, 1.0, 0.0])
    alone, batch = (brownian_noise(SHAPE, seeds, sigmas)(sigmas[0], sigmas[1]) for seeds in ([43], [42, 43]))
    assert torch.equal(alone[0], batch[1])
