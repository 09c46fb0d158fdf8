"""UniPC, the unified predictor-corrector of Zhao et al. (2023), for data prediction. Walks the continuous time 0–1 of a
variance-preserving model; timestep_samplers.py has the contract."""

from dataclasses import dataclass
from math import exp, expm1, log, log1p, sqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.diffusion.denoisers import PredictEps
from modules.diffusion.steps import Noise, OnStep, Step

Variant = Literal["bh1", "bh2", "vary_coeff"]
Skip = Literal["time_uniform", "time_quadratic", "logSNR"]


@dataclass(frozen=True)
class Point:
    """One time of the walk."""

    t: float
    log_alpha: float  # half the logarithm of ᾱ

    @property
    def alpha(self) -> float:
        return exp(self.log_alpha)

    @property
    def sigma(self) -> float:
        return sqrt(-expm1(2 * self.log_alpha))

    @property
    def lambda_(self) -> float:
        """Half the logarithm of the signal-to-noise ratio."""
        return self.log_alpha - log(self.sigma)


class Times:
    """Continuous time of a model with T timesteps: timestep i is (i + 1) / T."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.total = len(alphas_cumprod)
        self._t = np.arange(1, self.total + 1) / self.total
        self._log_alpha = alphas_cumprod.double().log().cpu().numpy() / 2

    def at(self, t: float) -> Point:
        return Point(t, float(np.interp(t, self._t, self._log_alpha)))

    def where_lambda_is(self, lambda_: float) -> Point:
        log_alpha = -log1p(exp(-2 * lambda_)) / 2
        return Point(float(np.interp(log_alpha, self._log_alpha[::-1], self._t[::-1])), log_alpha)

    def timestep(self, point: Point) -> float:
        """As the network knows it; may be fractional."""
        return point.t * self.total - 1

    def walk(self, steps: int, skip: Skip, start: float) -> list[Point]:
        """steps + 1 times, falling."""
        end = 1 / self.total
        if skip == "logSNR":
            lambdas = np.linspace(self.at(start).lambda_, self.at(end).lambda_, steps + 1)
            return [self.where_lambda_is(float(value)) for value in lambdas]
        power = 2 if skip == "time_quadratic" else 1
        return [self.at(float(t) ** power) for t in np.linspace(start ** (1 / power), end ** (1 / power), steps + 1)]


def unipc(
    predict_eps: PredictEps,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    uni_pc_variant: Variant = "bh1",
    uni_pc_skip_type: Skip = "time_uniform",
    uni_pc_order: int = 3,
    uni_pc_lower_order_final: bool = True,
    start: float = 1.0,
) -> Tensor:
    """Of `timesteps` only the number counts, and it is the number of calls of the model; `start` is where x is, 0–1."""
    times, steps = Times(alphas_cumprod), len(timesteps)
    order = min(uni_pc_order, steps)
    walk = times.walk(steps, uni_pc_skip_type, start)

    def x0_at(x: Tensor, point: Point) -> Tensor:
        eps = predict_eps(x, torch.tensor(times.timestep(point), device=x.device))
        return (x - point.sigma * eps) / point.alpha

    known = [(walk[0], x0_at(x, walk[0]))]  # the latest first
    for i in range(1, steps + 1):
        lower = min(order, i)
        if uni_pc_lower_order_final and i >= order:
            lower = min(lower, steps + 1 - i)
        on_step(Step(i - 1, steps, torch.tensor(known[0][0].sigma / known[0][0].alpha), known[0][1]))
        update = _Update(x, known[:lower], walk[i], uni_pc_variant)
        x = update.predicted()
        if i < steps:
            x0 = x0_at(x, walk[i])
            x = update.corrected(x0)
            known = [(walk[i], x0), *known[: order - 1]]
    return x


class _Update:
    """One step of order len(known), algorithms 5 and 7 of the paper; `known` has points and their x0, the latest
    first."""

    def __init__(self, x: Tensor, known: list[tuple[Point, Tensor]], target: Point, variant: Variant) -> None:
        here, self.x0 = known[0]
        self.order, self.variant, self.alpha = len(known), variant, target.alpha
        self.h = here.lambda_ - target.lambda_  # negative, as in data prediction
        self.r = np.array([(p.lambda_ - here.lambda_) / -self.h for p, _ in known[1:]] + [1.0])
        self.slopes = [(x0 - self.x0) / float(r) for (_, x0), r in zip(known[1:], self.r, strict=False)]
        self.base = target.sigma / here.sigma * x - self.alpha * expm1(self.h) * self.x0

    def predicted(self) -> Tensor:
        return self._moved(self.slopes, self._weights(self.order - 1))

    def corrected(self, x0: Tensor) -> Tensor:
        """`x0`: what the model says at the predicted x."""
        return self._moved([*self.slopes, x0 - self.x0], self._weights(self.order))

    def _moved(self, slopes: list[Tensor], weights: NDArray[np.float64]) -> Tensor:
        x = self.base
        for slope, weight in zip(slopes, weights, strict=True):
            x = x - self.alpha * float(weight) * slope
        return x

    def _weights(self, count: int) -> NDArray[np.float64]:
        """Of the first `count` slopes."""
        if count == 0:
            return np.zeros(0)
        phis = self._phis(count)
        if self.variant == "vary_coeff":
            return self._varying_weights(phis)
        b = self.h if self.variant == "bh1" else expm1(self.h)
        if (count, self.order) in ((1, 2), (1, 1)):
            return np.array([b / 2])  # as the authors simplify it
        powers = self.r[:count] ** np.arange(count)[:, None]
        factorials = np.cumprod(np.arange(1, count + 1))
        return np.linalg.solve(powers, phis * factorials).astype(np.float64)

    def _varying_weights(self, phis: NDArray[np.float64]) -> NDArray[np.float64]:
        """Exact for all h. The corrector (where the slope to the target comes last) is that of the authors' code, which
        is not quite their formula: the last row of the inverse is left out, and the row before stands in for it."""
        count = len(phis)
        inverse = np.linalg.inv(self.r[:count, None] ** np.arange(count) / np.cumprod(np.arange(1, count + 1)))
        weights: NDArray[np.float64] = phis @ inverse
        if 1 < count == self.order:
            weights[:-1] = phis[:-1] @ inverse[:-1, :-1]
            weights[-1] = phis[-1] * inverse[-2, -1]
        return weights

    def _phis(self, count: int) -> NDArray[np.float64]:
        """h φ_{k+1}(h), k = 1 … count."""
        phis, phi, factorial = [], expm1(self.h), 1.0
        for k in range(1, count + 1):
            phi = phi / self.h - 1 / factorial
            factorial *= k + 1
            phis.append(phi)
        return np.array(phis)
