"""Samplers: pure functions from a noisy latent to a clean one. They know nothing of models, guidance or devices;
steps.py has the contract. Here are those that integrate dx/dsigma, and the table of all that walk noise levels."""

from math import inf

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from modules.diffusion.dpm_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from modules.diffusion.dpm_solver import dpm_adaptive, dpm_fast, dpmpp_2m, dpmpp_2s_ancestral
from modules.diffusion.schedules import karras_between
from modules.diffusion.steps import (
    Denoise,
    Noise,
    OnStep,
    Sampler,
    Step,
    ancestral_step,
    churn,
    halfway,
    options_of,
    to_d,
)

__all__ = ["SAMPLERS", "Denoise", "Noise", "OnStep", "Sampler", "Step", "options_of"]


# Which steps end in 0 is read from the device once, before the loop: inside of it every such question would wait until
# all that was asked of the device before is done.


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Algorithm 2 of Karras et al. (2022), first order."""
    total = len(sigmas) - 1
    for i in range(total):
        x, sigma = churn(x, sigmas[i], total, noise, s_churn, s_tmin, s_tmax, s_noise)
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigmas[i], x0))
        x = x + to_d(x, sigma, x0) * (sigmas[i + 1] - sigma)
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep, *, eta: float = 1.0
) -> Tensor:
    """An Euler step down to less than the next level, and fresh noise up to it."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(total):
        x0 = denoise(x, sigmas[i])
        on_step(Step(i, total, sigmas[i], x0))
        down, up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = x + to_d(x, sigmas[i], x0) * (down - sigmas[i])
        if levels[i + 1] > 0:
            x = x + noise() * up
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Algorithm 2 of Karras et al. (2022)."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(total):
        x, sigma = churn(x, sigmas[i], total, noise, s_churn, s_tmin, s_tmax, s_noise)
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigmas[i], x0))
        x = heun_step(denoise, x, sigma, sigmas[i + 1], x0, levels[i + 1] == 0)
    return x


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, x0: Tensor, is_last: bool) -> Tensor:
    """With the mean of the slopes at both ends; to 0, where there is none, an Euler step."""
    d = to_d(x, sigma, x0)
    euler_x = x + d * (sigma_next - sigma)
    if is_last:
        return euler_x
    d_next = to_d(euler_x, sigma_next, denoise(euler_x, sigma_next))
    return x + (d + d_next) / 2 * (sigma_next - sigma)


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """The slope in the middle of the step, as DPM-Solver-2 of Lu et al. (2022a), with the churn of Karras et al."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(total):
        x, sigma = churn(x, sigmas[i], total, noise, s_churn, s_tmin, s_tmax, s_noise)
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigmas[i], x0))
        x = midpoint_step(denoise, x, sigma, sigmas[i + 1], x0, levels[i + 1] == 0)
    return x


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """`dpm_2` down to less than the next level, and fresh noise up to it."""
    total = len(sigmas) - 1
    downs = ancestral_step(sigmas[:-1], sigmas[1:], eta)[0].tolist()
    for i in range(total):
        x0 = denoise(x, sigmas[i])
        on_step(Step(i, total, sigmas[i], x0))
        down, up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = midpoint_step(denoise, x, sigmas[i], down, x0, downs[i] == 0)
        if downs[i] > 0:
            x = x + noise() * s_noise * up
    return x


def midpoint_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, x0: Tensor, is_last: bool) -> Tensor:
    d = to_d(x, sigma, x0)
    if is_last:
        return x + d * (sigma_next - sigma)
    middle = halfway(sigma, sigma_next)
    x_middle = x + d * (middle - sigma)
    return x + to_d(x_middle, middle, denoise(x_middle, middle)) * (sigma_next - sigma)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Linear multistep of order 4: the slope is the polynomial through the last four."""
    total = len(sigmas) - 1
    levels = sigmas.double().tolist()
    slopes: list[Tensor] = []  # the latest first
    for i in range(total):
        x0 = denoise(x, sigmas[i])
        on_step(Step(i, total, sigmas[i], x0))
        slopes = [to_d(x, sigmas[i], x0), *slopes[:3]]
        known = levels[i - len(slopes) + 1 : i + 1][::-1]
        for j, d in enumerate(slopes):
            x = x + d * lagrange_integral(known, j, levels[i], levels[i + 1])
    return x


def lagrange_integral(points: list[float], j: int, start: float, end: float) -> float:
    """Of the polynomial that is 1 at points[j] and 0 at the others."""
    basis = Polynomial([1.0])
    for k, point in enumerate(points):
        if k != j:
            basis = basis * Polynomial([-point, 1.0]) / (points[j] - point)
    integral = basis.integ()
    return float(integral(end) - integral(start))


def restart(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Xu et al. (2023), "Restart sampling": Heun's steps, and from 20 steps on, once or twice, back up from about 0.1
    to about 2 with fresh noise and down again. The number of steps stays about that of `sigmas`."""
    walk = restart_walk(sigmas)
    levels = torch.stack([torch.stack(step) for step in walk]).tolist()
    for i, (sigma, sigma_next) in enumerate(walk):
        if i > 0 and levels[i][0] > levels[i - 1][1]:
            x = x + noise() * (sigma**2 - walk[i - 1][1] ** 2).sqrt()
        x0 = denoise(x, sigma)
        on_step(Step(i, len(walk), sigma, x0))
        x = heun_step(denoise, x, sigma, sigma_next, x0, levels[i][1] == 0)
    return x


def restart_walk(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(from, to) of every step."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(zip(sigmas, sigmas[1:], strict=False))
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    sigmas = karras_between(steps - length * times, sigmas[-2].item(), sigmas[0].item()).to(sigmas.device)
    low, high = int((sigmas - 0.1).abs().argmin()), int((sigmas - 2.0).abs().argmin())
    walk = list(zip(sigmas, sigmas[1:], strict=False))
    if high < low:
        again = karras_between(length + 1, sigmas[low].item(), sigmas[high].item())[:-1].to(sigmas.device)
        walk[low:low] = list(zip(again, again[1:], strict=False)) * times
    return walk


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Algorithm 3 of Luo et al. (2023), "Latent consistency models": straight to x0, and fresh noise up to the next
    level. Wants a denoiser that is a consistency function (prediction.consistency_x0)."""
    total = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(total):
        x = denoise(x, sigmas[i])
        on_step(Step(i, total, sigmas[i], x))
        if levels[i + 1] > 0:
            x = x + noise() * sigmas[i + 1]
    return x


SAMPLERS: dict[str, Sampler] = {
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": dpmpp_2m_sde_heun,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "Euler a": euler_ancestral,
    "Euler": euler,
    "LMS": lms,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2_ancestral,
    "DPM fast": dpm_fast,
    "DPM adaptive": dpm_adaptive,
    "Restart": restart,
    "LCM": lcm,
}
