"""Samplers that walk the model's own timesteps, on latents of constant variance: z = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) eps.

sampler(predict_eps, x, timesteps, alphas_cumprod, noise, on_step, *, options …) -> x

x (B, C, H, W)              at the level of the last of the timesteps
timesteps (n,)              rising; the sampler walks them from the last to the first
alphas_cumprod (T,)         ᾱ of the model
predict_eps(x, t) -> eps    the model, guidance already applied; t is a scalar
noise, on_step              as in samplers.py
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from modules.diffusion.denoisers import PredictEps
from modules.diffusion.steps import Noise, OnStep, Sampler, Step
from modules.diffusion.unipc import unipc

PredictBoth = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Variance = Literal["small", "large"]


def ddim(
    predict_eps: PredictEps,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. (2021), eq. 12 and 16; eta 0 is deterministic, 1 has the noise of DDPM."""

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        eps = predict_eps(x, t)
        return eps, eps

    return _ddim(both, x, timesteps, alphas_cumprod, noise, on_step, eta)


def ddim_cfg_pp(
    predict_both: PredictBoth,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 0.0,
) -> Tensor:
    """DDIM of Chung et al. (2024), "CFG++": x0 by the guided prediction, the way back by the one without the prompt.
    predict_both(x, t) -> both of them."""
    return _ddim(predict_both, x, timesteps, alphas_cumprod, noise, on_step, eta)


def _ddim(
    predict_both: PredictBoth,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    eta: float,
) -> Tensor:
    a = alphas_cumprod[timesteps].double()  # (n,), whose scalars leave latents float32
    total = len(timesteps) - 1
    for step, i in enumerate(range(total, 0, -1)):
        eps, eps_back = predict_both(x, timesteps[i])
        x0 = x0_from(x, eps, a[i])
        on_step(Step(step, total, ((1 - a[i]) / a[i]).sqrt(), x0))
        sigma = eta * ((1 - a[i - 1]) / (1 - a[i]) * (1 - a[i] / a[i - 1])).sqrt()
        x = a[i - 1].sqrt() * x0 + (1 - a[i - 1] - sigma**2).sqrt() * eps_back
        if eta > 0:
            x = x + sigma * noise()
    return x


def plms(
    predict_eps: PredictEps, x: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Pseudo linear multistep of Liu et al. (2022), eq. 12, with DDIM's transfer; the first step by its eq. 13."""
    a = alphas_cumprod[timesteps].double()
    total = len(timesteps) - 1
    old: list[Tensor] = []  # eps of the steps before, the latest first
    for step, i in enumerate(range(total, 0, -1)):
        eps = predict_eps(x, timesteps[i])
        if len(old) == 0:
            x_next = transfer(x, eps, a[i], a[i - 1])
            mean = (eps + predict_eps(x_next, timesteps[i - 1])) / 2
        elif len(old) == 1:
            mean = (3 * eps - old[0]) / 2
        elif len(old) == 2:
            mean = (23 * eps - 16 * old[0] + 5 * old[1]) / 12
        else:
            mean = (55 * eps - 59 * old[0] + 37 * old[1] - 9 * old[2]) / 24
        on_step(Step(step, total, ((1 - a[i]) / a[i]).sqrt(), x0_from(x, mean, a[i])))
        x = transfer(x, mean, a[i], a[i - 1])
        old = [eps, *old[:2]]
    return x


def ddpm(
    predict_eps: PredictEps,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    ddpm_variance: Variance = "small",
) -> Tensor:
    """Ancestral sampling, algorithm 2 of Ho et al. (2020), on a part of the timesteps as in Nichol & Dhariwal (2021).
    "small" is the variance of the true posterior, "large" that of the forward step. Walks all n timesteps, to no
    noise."""
    a = alphas_cumprod[timesteps].double()
    total = len(timesteps)
    for step, i in enumerate(range(total - 1, -1, -1)):
        a_next = a[i - 1] if i > 0 else torch.ones_like(a[i])
        eps = predict_eps(x, timesteps[i])
        on_step(Step(step, total, ((1 - a[i]) / a[i]).sqrt(), x0_from(x, eps, a[i])))
        alpha = a[i] / a_next
        x = (x - (1 - alpha) / (1 - a[i]).sqrt() * eps) / alpha.sqrt()
        if i > 0:
            variance = (1 - alpha) * ((1 - a_next) / (1 - a[i]) if ddpm_variance == "small" else 1)
            x = x + variance.sqrt() * noise()
    return x


def x0_from(x: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def transfer(x: Tensor, eps: Tensor, a: Tensor, a_next: Tensor) -> Tensor:
    """From one ᾱ to another along eps: DDIM without noise."""
    return a_next.sqrt() * x0_from(x, eps, a) + (1 - a_next).sqrt() * eps


TIMESTEP_SAMPLERS: dict[str, Sampler] = {
    "DDIM": ddim,
    "DDIM CFG++": ddim_cfg_pp,
    "PLMS": plms,
    "UniPC": unipc,
    "DDPM": ddpm,
}
