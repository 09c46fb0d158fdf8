"""The noise levels that a model was trained with, and the way from what it predicts to the clean latent. Three names of
one level: ᾱ (alphas_cumprod), sigma = sqrt((1 - ᾱ) / ᾱ), and the timestep, which is the index of both and may be
fractional."""

import numpy as np
import torch
from torch import Tensor


def scaled_linear_alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """(steps,) float32, falling: ᾱ of Stable Diffusion's training; betas are linear in their square root. Computed in
    float64, as the original did, for its last digits decide the first sigma."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).numpy() ** 2
    return torch.tensor(np.cumprod(1.0 - betas), dtype=torch.float32)


LAST_ALPHA_CUMPROD = 4.8973451890853435e-08  # A1111's: all but 0, so that the last sigma is a number, 4518.7


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """(T,) -> (T,): stretched so that the last level is noise and nothing else, the first as it was; Algorithm 1 of
    Lin et al. (2023)."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    stretched = ((roots - last) * (first / (first - last))) ** 2
    stretched[-1] = LAST_ALPHA_CUMPROD
    return stretched


def sigmas_from(alphas_cumprod: Tensor) -> Tensor:
    """(T,), rising."""
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5


def sigma_to_t(sigma: Tensor, sigmas: Tensor, quantize: bool = False) -> Tensor:
    """The timestep of each sigma, between two of the model's `sigmas` (T,) by their logarithms; `quantize`: the
    nearest."""
    log_sigma, log_sigmas = sigma.log(), sigmas.log()
    if quantize:
        return (log_sigma[..., None] - log_sigmas).abs().argmin(-1)
    above = torch.searchsorted(log_sigmas.to(log_sigma), log_sigma.contiguous(), right=True)
    low_index = (above - 1).clamp(0, len(sigmas) - 2)
    # By `take`: an index of no dimension would be read from the device first.
    low, high = log_sigmas.take(low_index), log_sigmas.take(low_index + 1)
    w = ((low - log_sigma) / (low - high)).clamp(0, 1)
    return (1 - w) * low_index + w * (low_index + 1)


def t_to_sigma(t: Tensor, sigmas: Tensor) -> Tensor:
    """The inverse: t may be fractional, 0 … T-1."""
    log_sigmas = sigmas.log()
    t = t.float()
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return ((1 - w) * log_sigmas.take(low) + w * log_sigmas.take(high)).exp()


def c_in(sigma: Tensor) -> Tensor:
    """What x is multiplied by before the network sees it: back to variance 1."""
    return 1 / (sigma**2 + 1) ** 0.5


def eps_to_x0(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x = x0 + sigma · eps."""
    return x - sigma * eps


def v_to_x0(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """v-prediction, Salimans & Ho (2022), with x = x0 + sigma · eps instead of their variance-preserving z."""
    return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5


def v_to_eps(z: Tensor, v: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """The same for a variance-preserving z = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) eps."""
    return alpha_cumprod.sqrt() * v + (1 - alpha_cumprod).sqrt() * z


def add_noise(x0: Tensor, eps: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Variance-preserving z at the level ᾱ; where samplers that walk timesteps start from a given latent."""
    return alpha_cumprod.sqrt() * x0 + (1 - alpha_cumprod).sqrt() * eps


CONSISTENCY_STEPS = 50  # levels that latent consistency models were distilled at


def consistency_levels(alphas_cumprod: Tensor) -> Tensor:
    """(50,) of (T,): ᾱ at every 20th timestep, the last included (19, 39, … 999)."""
    stride = len(alphas_cumprod) // CONSISTENCY_STEPS
    return alphas_cumprod[stride - 1 :: stride]


def consistency_t(sigma: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The nearest of the timesteps that the model was distilled at."""
    stride = len(alphas_cumprod) // CONSISTENCY_STEPS
    index = sigma_to_t(sigma, sigmas_from(consistency_levels(alphas_cumprod)), quantize=True)
    return index * stride + stride - 1


def consistency_x0(x: Tensor, eps: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
    """The consistency function of Luo et al. (2023), eq. 9 with their c_skip and c_out, sigma_data 0.5."""
    scaled = t * 10.0
    c_skip = 0.25 / (scaled**2 + 0.25)
    c_out = scaled / (scaled**2 + 0.25).sqrt()
    return c_out * eps_to_x0(x, eps, sigma) + c_skip * x
