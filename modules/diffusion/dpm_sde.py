"""DPM-Solver++ for the stochastic equation (Lu et al., 2022b, section 6): eta scales its noise, which comes from a
Brownian path, so that the picture hardly depends on the number of steps. steps.py has the contract; here `noise(sigma,
sigma_next)` gives the path's increment at unit variance."""

from collections.abc import Callable

from torch import Tensor

from modules.diffusion.brownian import BetweenLevels
from modules.diffusion.dpm_solver import exact
from modules.diffusion.steps import Denoise, OnStep, Step, ancestral_step, halfway, to_d


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: BetweenLevels,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2S): a stochastic step to the middle, and from the start again with what was found there."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(total):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        if levels[i + 1] == 0:
            x = x + to_d(x, sigma, x0) * (sigma_next - sigma)
            continue
        middle = halfway(sigma, sigma_next)
        down, up = ancestral_step(sigma, middle, eta)
        x_middle = exact(x, x0, sigma, down) + noise(sigma, middle) * s_noise * up
        x0 = denoise(x_middle, middle)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = exact(x, x0, sigma, down) + noise(sigma, sigma_next) * s_noise * up
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: BetweenLevels,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) with the midpoint rule."""
    return _dpmpp_2m_sde(denoise, x, sigmas, noise, on_step, eta, s_noise, lambda h: 0.5 * -(-h).expm1())


def dpmpp_2m_sde_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: BetweenLevels,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) with Heun's rule."""
    return _dpmpp_2m_sde(denoise, x, sigmas, noise, on_step, eta, s_noise, phi_2)


def _dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: BetweenLevels,
    on_step: OnStep,
    eta: float,
    s_noise: float,
    rule: Callable[[Tensor], Tensor],
) -> Tensor:
    """`rule` weighs the change of x0 since the step before."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    h_old, x0_old = None, x
    for i in range(total):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        if levels[i + 1] == 0:
            x = x0
            continue
        h = sigma.log() - sigma_next.log()
        all_h = h * (1 + eta)
        x = (-all_h).exp() * x - (-all_h).expm1() * x0
        if h_old is not None:
            x = x + rule(all_h) * (h / h_old) * (x0 - x0_old)
        if eta:
            x = x + noise(sigma, sigma_next) * fresh(sigma_next, h, eta) * s_noise
        h_old, x0_old = h, x0
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: BetweenLevels,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(3M): the parabola through the last three x0."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    x0s: list[Tensor] = []  # of the steps before, the latest first
    hs: list[Tensor] = []
    for i in range(total):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        if levels[i + 1] == 0:
            x = x0
            continue
        h = sigma.log() - sigma_next.log()
        all_h = h * (1 + eta)
        x = (-all_h).exp() * x - (-all_h).expm1() * x0
        if len(hs) == 1:
            x = x + phi_2(all_h) * (x0 - x0s[0]) / (hs[0] / h)
        elif len(hs) == 2:
            r0, r1 = hs[0] / h, hs[1] / h
            slope, slope_old = (x0 - x0s[0]) / r0, (x0s[0] - x0s[1]) / r1
            d2 = (slope - slope_old) / (r0 + r1)
            d1 = slope + d2 * r0
            x = x + phi_2(all_h) * d1 - (phi_2(all_h) / all_h - 0.5) * d2
        if eta:
            x = x + noise(sigma, sigma_next) * fresh(sigma_next, h, eta) * s_noise
        x0s, hs = [x0, *x0s[:1]], [h, *hs[:1]]
    return x


def phi_2(h: Tensor) -> Tensor:
    """(e^-h - 1) / h + 1, of exponential integrators."""
    return (-h).expm1() / h + 1


def fresh(sigma_next: Tensor, h: Tensor, eta: float) -> Tensor:
    """How much of the noise at `sigma_next` is new after a step of h."""
    return sigma_next * (-(-2 * h * eta).expm1()).sqrt()
