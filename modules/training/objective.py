"""The training objective of "Denoising Diffusion Probabilistic Models", Ho et al. (2020).

Pure functions over tensors, and a running mean of weights. Knows nothing of networks, prompts, data or devices:
the caller passes the network as a function of (x_t, t).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Generator, Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
Predict = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) x_t and (B,) t -> (B, C, H, W), the noise in x_t


@dataclass(frozen=True)
class Loss:
    weighted: Tensor  # (), what is minimised
    mse: Tensor  # (B,), plain squared error of each sample; detached


def training_loss(
    predict: Predict,
    x0: Tensor,
    t: Tensor,
    epsilon: Tensor,
    alphas_bar: Tensor,
    snr_gamma: float = 5.0,
    density: Tensor | None = None,
) -> Loss:
    """Algorithm 1 of Ho et al. (2020): E ‖ε − ε_θ(√ᾱ_t x_0 + √(1−ᾱ_t) ε, t)‖², weighted by `min_snr_weight`.

    With `snr_gamma` = inf the weight is 1 everywhere: L_simple, their equation 14. `density` (T,): how often each t was
    drawn, where that is not equally often; it is divided out, so that the expected loss stays the same.
    """
    predicted = predict(q_sample(x0, t, epsilon, alphas_bar), t).float()
    mse = (predicted - epsilon).square().mean(dim=(1, 2, 3))  # (B,)
    weight = min_snr_weight(alphas_bar, snr_gamma)
    if density is not None:
        weight = weight * density.mean() / density
    weight = weight[t]
    return Loss(weighted=(weight * mse).mean(), mse=mse.detach())


def q_sample(x0: Tensor, t: Tensor, epsilon: Tensor, alphas_bar: Tensor) -> Tensor:
    """Forward process in one step, equation 4: x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, so x_t ~ N(√ᾱ_t x_0, (1−ᾱ_t) I).

    x0, epsilon: (B, C, H, W); t: (B,) in 0..T-1; alphas_bar: (T,).
    """
    a = alphas_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * epsilon


def scaled_linear_alphas_bar(timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """ᾱ_t = ∏ (1 − β_s) for s ≤ t, (T,): Stable Diffusion's schedule, in which √β grows linearly."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


def signal_to_noise(alphas_bar: Tensor) -> Tensor:
    """SNR_t = ᾱ_t / (1 − ᾱ_t), (T,)."""
    return alphas_bar / (1 - alphas_bar)


def min_snr_weight(alphas_bar: Tensor, gamma: float = 5.0) -> Tensor:
    """w_t = min(SNR_t, γ) / SNR_t for a network that predicts ε, (T,): equation 6 of Hang et al. (2023).

    Without it the many nearly clean timesteps, which teach little, dominate the gradient.
    """
    return (gamma / signal_to_noise(alphas_bar)).clamp(max=1.0)


def stratified_timesteps(
    batch_size: int, generator: Generator, timesteps: int = 1000, density: Tensor | None = None
) -> Tensor:
    """(batch_size,) timesteps, each uniform over 0..T-1, but one from every T/B-th part: the loss varies less.

    After Kingma et al. (2021), "Variational Diffusion Models", appendix I.1; here each part has an offset of its own.
    With `density` (T,), on the CPU, t is drawn in proportion to it, and the parts are equally likely, not equally long.
    Drawn in proportion to its weight in the loss, no sample is spent where the loss hardly counts.
    """
    u = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    order = torch.randperm(batch_size, generator=generator)
    if density is None:
        return (u * timesteps).long().clamp(max=timesteps - 1)[order]
    reached = density.double().cumsum(0)
    found: Tensor = torch.searchsorted(reached, u.double() * reached[-1], right=True)
    return found.clamp(max=len(density) - 1)[order]


def drop_captions(captions: Sequence[str], probability: float, generator: Generator) -> list[str]:
    """Captions, some of them replaced by "": Algorithm 1 of Ho & Salimans (2022), "Classifier-Free Guidance"."""
    dropped = (torch.rand(len(captions), generator=generator) < probability).tolist()
    return ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


class EMA(Generic[Module]):
    """Exponential moving average of a network's weights, the ones to sample with (Ho et al., appendix B).

    θ̄ ← d θ̄ + (1 − d) θ, with d = min(decay, (1 + n) / (10 + n)) after n updates, so that early weights fade soon.
    """

    def __init__(self, module: Module, decay: float = 0.999) -> None:
        self.module: Module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = zip(self.module.parameters(), module.parameters(), strict=True)
        moving = [(mean, live) for mean, live in pairs if live.requires_grad]  # frozen weights do not move
        if not moving:
            return
        torch._foreach_lerp_([mean for mean, _ in moving], [live for _, live in moving], 1 - d)
