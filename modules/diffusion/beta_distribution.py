"""The beta distribution, for the schedule of that name: scipy, for one function, would be large."""

from math import exp, lgamma, log, log1p

ITERATIONS = 200


def beta_quantile(p: float, a: float, b: float) -> float:
    """Where the distribution function of Beta(a, b) is p: by halving, to the last digit."""
    if p <= 0 or p >= 1:
        return 0.0 if p <= 0 else 1.0
    low, high = 0.0, 1.0
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if beta_distribution(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_distribution(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), DLMF 8.17."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction would converge slowly
        return 1 - beta_distribution(1 - x, b, a)
    front = exp(a * log(x) + b * log1p(-x) + lgamma(a + b) - lgamma(a) - lgamma(b)) / a
    return front / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """DLMF 8.17.22, by the method of Lentz."""
    value = c = 1.0
    d = 0.0
    for k in range(1, ITERATIONS):
        m = k // 2
        if k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d)
        c = 1 + term / c
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value
