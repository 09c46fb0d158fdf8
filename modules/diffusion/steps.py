"""What all samplers share: the contract with the engine, and the small steps that they are made of.

    sampler(denoise, x, sigmas, noise, on_step, *, options …) -> x

    x (B, C, H, W)            clean latent + sigmas[0] · noise
    sigmas (n + 1,)           falling, the last is usually 0
    denoise(x, sigma) -> x0   the model, guidance already applied; sigma is a scalar
    noise() -> (B, C, H, W)   fresh noise, one stream an image; where the table of names says "brownian_noise" it is
                              noise(sigma, sigma_next) instead, the increment of a Brownian path between the two
    on_step(Step)             called once a step, before its update; may raise to stop

Options are keyword arguments with A1111's names; `options_of` lists those of a sampler.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

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


def to_d(x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
    """dx/dsigma, eq. 3 of Karras et al. (2022)."""
    return (x - x0) / sigma


def churn(
    x: Tensor, sigma: Tensor, total: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, Tensor]:
    """A little more noise before the step: lines 4 to 6 of algorithm 2 of Karras et al. (2022). -> x, sigma"""
    if s_churn == 0:
        return x, sigma
    eps = noise()  # also where it is not used: the noise of a step does not depend on the limits
    if not s_tmin <= sigma <= s_tmax:
        return x, sigma
    sigma_hat = sigma * (1 + min(s_churn / total, sqrt(2) - 1))
    return x + eps * s_noise * (sigma_hat**2 - sigma**2).sqrt(), sigma_hat


def ancestral_step(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """How far to go down, and how much noise then leads up to `sigma_next`: down² + up² = sigma_next²."""
    if eta == 0:
        return sigma_next, torch.zeros_like(sigma_next)
    up = torch.minimum(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt())
    return (sigma_next**2 - up**2).sqrt(), up


def halfway(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The geometric mean."""
    return (sigma.log() / 2 + sigma_next.log() / 2).exp()
