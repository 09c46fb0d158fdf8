"""The beta distribution where it is known in closed form, and its quantiles."""

from math import asin, pi, sqrt

import pytest

from modules.diffusion.beta_distribution import beta_distribution, beta_quantile

POINTS = (1e-9, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-9)


@pytest.mark.parametrize("x", POINTS)
def test_known_distributions(x: float) -> None:
    assert beta_distribution(x, 1, 1) == pytest.approx(x)
    assert beta_distribution(x, 0.5, 0.5) == pytest.approx(2 / pi * asin(sqrt(x)), rel=1e-9)
    assert beta_distribution(x, 2, 1) == pytest.approx(x**2)
    assert beta_distribution(x, 1, 3) == pytest.approx(1 - (1 - x) ** 3)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.01, 1.0), (1.0, 0.01), (0.3, 0.9)])
@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.9])
def test_quantiles_are_the_inverse(a: float, b: float, p: float) -> None:
    x = beta_quantile(p, a, b)
    assert 0 <= x <= 1
    if 1e-50 < x < 1 - 1e-12:  # nearer to the ends the quantile is the end
        assert beta_distribution(x, a, b) == pytest.approx(p, rel=1e-6)


def test_the_ends() -> None:
    assert (beta_quantile(0.0, 0.6, 0.6), beta_quantile(1.0, 0.6, 0.6)) == (0.0, 1.0)
