"""Samplers: pure functions from a noisy latent to a clean one. They know nothing of models, guidance or devices.

    sampler(denoise, x, sigmas, noise, on_step, *, options …) -> x

    x (B, C, H, W)            clean latent + sigmas[0] · noise
    sigmas (n + 1,)           falling, the last is usually 0
    denoise(x, sigma) -> x0   the model, guidance already applied
    noise() -> (B, C, H, W)   fresh noise, one stream an image
    on_step(Step)             called once a step, before its update; may raise to stop

Options are keyword arguments with A1111's names; `options_of` lists those of a sampler.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    index: int  # 0-based
    total: int
    sigma: Tensor  # scalar
    denoised: Tensor  # (B, C, H, W): the model's guess at the clean latent


OnStep = Callable[[Step], None]
Sampler = Callable[..., Tensor]


def options_of(sampler: Sampler) -> frozenset[str]:
    """The names of a sampler's options."""
    parameters = inspect.signature(sampler).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


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
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """An Euler step down to less than the next level, and fresh noise up to it."""
    total = len(sigmas) - 1
    for i in range(total):
        x0 = denoise(x, sigmas[i])
        on_step(Step(i, total, sigmas[i], x0))
        down, up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = x + to_d(x, sigmas[i], x0) * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + noise() * s_noise * up
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022b), with lambda = -log sigma."""
    total = len(sigmas) - 1
    old_x0 = torch.zeros_like(x)
    for i in range(total):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = denoise(x, sigma)
        on_step(Step(i, total, sigma, x0))
        h = sigma.log() - sigma_next.log()  # infinite in a last step to 0, where x becomes x0
        if i == 0 or sigma_next == 0:
            d = x0
        else:
            r = (sigmas[i - 1].log() - sigma.log()) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old_x0
        x = sigma_next / sigma * x - torch.expm1(-h) * d
        old_x0 = x0
    return x


def to_d(x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
    """dx/dsigma, eq. 3 of Karras et al. (2022)."""
    return (x - x0) / sigma


def churn(
    x: Tensor, sigma: Tensor, total: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, Tensor]:
    """A little more noise before the step: lines 4 to 6 of algorithm 2 of Karras et al. (2022). -> x, sigma"""
    gamma = min(s_churn / total, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
    if gamma == 0:
        return x, sigma
    sigma_hat = sigma * (gamma + 1)
    return x + noise() * s_noise * (sigma_hat**2 - sigma**2).sqrt(), sigma_hat


def ancestral_step(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """How far to go down, and how much noise then leads up to `sigma_next`: down² + up² = sigma_next²."""
    if eta == 0:
        return sigma_next, torch.zeros_like(sigma_next)
    up = torch.minimum(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt())
    return (sigma_next**2 - up**2).sqrt(), up


SAMPLERS: dict[str, Sampler] = {
    "DPM++ 2M": dpmpp_2m,
    "Euler a": euler_ancestral,
    "Euler": euler,
}
