"""Schedules: the falling list of noise levels (sigmas) that a sampler walks down, or of timesteps for samplers that
walk those. Pure functions; know nothing of the sampler, but for `sigmas_for`, which applies what a sampler wants of its
schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, log

import numpy as np
import torch
from torch import Tensor

from modules.diffusion.beta_distribution import beta_quantile
from modules.diffusion.names import SCHEDULE_INFOS, SamplerInfo, resolve
from modules.diffusion.prediction import sigma_to_t, t_to_sigma


@dataclass(frozen=True)
class Levels:
    """The noise levels to choose from."""

    sigmas: Tensor  # (T,) float32, rising: the model's own
    sigma_min: float  # where the schedule ends, before the last 0
    sigma_max: float  # where it starts
    rho: float  # the exponent of Karras's and the polyexponential schedule
    alpha: float = 0.6  # both parameters of the distribution of "Beta"
    beta: float = 0.6
    sdxl: bool = False  # which table "Align Your Steps" takes


Schedule = Callable[[int, Levels], Tensor]  # steps, levels -> (steps + 1,) float32, falling, the last is 0


def sigmas_for(
    sampler: SamplerInfo,
    schedule: str,
    steps: int,
    sigmas: Tensor,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = 0.0,
    rho: float = 0.0,
    beta_dist_alpha: float = 0.6,
    beta_dist_beta: float = 0.6,
    discard_next_to_last: bool = False,
    sdxl: bool = False,
) -> Tensor:
    """(steps + 1,) float32. `sigmas` (T,): the model's own; `sigma_min`, `sigma_max`, `rho`: 0 leaves the default.

    Only levels that fall are in it, so there may be fewer. Raises ValueError when the ends are the wrong way
    round, or too far apart for rho."""
    label = resolve(sampler, schedule)
    default_rho = next(info.default_rho for info in SCHEDULE_INFOS if info.label == label)
    levels = Levels(
        sigmas,
        sigma_min or sigmas[0].item(),
        sigma_max or sigmas[-1].item(),
        rho or default_rho,
        beta_dist_alpha,
        beta_dist_beta,
        sdxl,
    )
    if levels.sigma_min > levels.sigma_max:
        raise ValueError(
            f"the noise levels cannot go from {levels.sigma_max:.6g} (sigma_max) down to {levels.sigma_min:.6g} "
            "(sigma_min); choose a smaller sigma_min or a larger sigma_max, or 0 for the model's own"
        )
    drop = sampler.discard_next_to_last_sigma or discard_next_to_last
    found = SCHEDULES[label](steps + drop, levels)
    if not found.isfinite().all() or found[0] <= 0:
        raise ValueError(
            f"the schedule {label} cannot be computed from {levels.sigma_max:.6g} (sigma_max) to "
            f"{levels.sigma_min:.6g} (sigma_min) with rho {levels.rho:.6g}; choose a larger rho or other ends"
        )
    before = torch.cat([found.new_tensor([torch.inf]), found.cummin(0).values[:-1]])
    found = found[found < before]  # a step of no length is none, and multistep samplers would divide by it
    return torch.cat([found[:-2], found[-1:]]) if drop else found


def timesteps_for(steps: int, trained: int = 1000) -> Tensor:
    """(n,) rising: every (trained // steps)-th timestep from 1 on; n may be larger than `steps` where that does not
    divide."""
    return (torch.arange(0, trained, trained // steps) + 1).clamp(0, trained - 1)


def uniform(steps: int, levels: Levels) -> Tensor:
    """Evenly spaced timesteps of the model, from its last to its first, whatever ends are asked for."""
    t = torch.linspace(len(levels.sigmas) - 1, 0, steps)
    return append_zero(t_to_sigma(t, levels.sigmas))


def karras(steps: int, levels: Levels) -> Tensor:
    return karras_between(steps, levels.sigma_min, levels.sigma_max, levels.rho)


def karras_between(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al. (2022), eq. 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return append_zero((high + ramp * (low - high)) ** rho)


def exponential(steps: int, levels: Levels) -> Tensor:
    """Evenly spaced logarithms."""
    return append_zero(torch.linspace(log(levels.sigma_max), log(levels.sigma_min), steps).exp())


def polyexponential(steps: int, levels: Levels) -> Tensor:
    """Logarithms that fall as a power of the step."""
    ramp = torch.linspace(1, 0, steps) ** levels.rho
    low, high = log(levels.sigma_min), log(levels.sigma_max)
    return append_zero((ramp * (high - low) + low).exp())


def sgm_uniform(steps: int, levels: Levels) -> Tensor:
    """Evenly spaced timesteps, the step to the lowest replaced by one to 0: as Stability's generative-models does
    it."""
    return append_zero(t_to_sigma(timesteps_between(steps + 1, levels)[:-1], levels.sigmas))


def normal(steps: int, levels: Levels) -> Tensor:
    """Evenly spaced timesteps between the ends."""
    return append_zero(t_to_sigma(timesteps_between(steps, levels), levels.sigmas))


def timesteps_between(count: int, levels: Levels) -> Tensor:
    ends = torch.tensor([levels.sigma_max, levels.sigma_min])
    first, last = sigma_to_t(ends, levels.sigmas).tolist()
    return torch.linspace(first, last, count)


def kl_optimal(steps: int, levels: Levels) -> Tensor:
    """Sabour et al. (2024), "Align your steps", section 3.2: evenly spaced arctangents. The last is not 0 but
    sigma_min."""
    part = torch.arange(steps + 1) / steps
    return (part * atan(levels.sigma_min) + (1 - part) * atan(levels.sigma_max)).tan()


def align_your_steps(steps: int, levels: Levels) -> Tensor:
    """Sabour et al. (2024), table 3, best at 10 or 11 steps; other numbers of steps in between by logarithms."""
    return append_zero(stretched(ALIGN_YOUR_STEPS_SDXL if levels.sdxl else ALIGN_YOUR_STEPS_SD1, steps))


def gits(steps: int, levels: Levels) -> Tensor:
    """Chen et al. (2024), "On the trajectory regularity of ODE-based diffusion sampling", for 10 steps."""
    return append_zero(stretched(GITS_SDXL if levels.sdxl else GITS_SD1, steps))


def stretched(sigmas: tuple[float, ...], steps: int) -> Tensor:
    """(steps,): as many points of the line through the logarithms; a single one is the lowest."""
    ends = np.linspace(1, 0, steps) if steps > 1 else np.zeros(1)
    known = np.linspace(0, 1, len(sigmas))
    return torch.tensor(np.exp(np.interp(ends, known, np.log(sigmas[::-1]))), dtype=torch.float32)


def simple(steps: int, levels: Levels) -> Tensor:
    """Every n-th of the model's own levels, from the highest."""
    stride = len(levels.sigmas) / steps
    return append_zero(levels.sigmas.float()[[-1 - int(i * stride) for i in range(steps)]])


def ddim(steps: int, levels: Levels) -> Tensor:
    """The model's own levels at DDIM's timesteps, where 1000 does not divide by the steps more than asked for."""
    return append_zero(levels.sigmas.float()[1 :: max(len(levels.sigmas) // steps, 1)].flip(0))


def beta(steps: int, levels: Levels) -> Tensor:
    """Lee et al. (2024), "Beta sampling is all you need": more steps at both ends, as quantiles of a beta
    distribution."""
    parts = [beta_quantile(p, levels.alpha, levels.beta) for p in 1 - np.linspace(0, 1, steps)]
    return append_zero(torch.tensor([levels.sigma_min + p * (levels.sigma_max - levels.sigma_min) for p in parts]))


def turbo(steps: int, levels: Levels) -> Tensor:
    """The timesteps that SD Turbo and SDXL Turbo were distilled at: 999 for one step, 999 and 499 for two, …"""
    t = torch.arange(steps, 0, -1) * (len(levels.sigmas) / steps) - 1
    return append_zero(levels.sigmas.float()[t.round().long().clamp(min=0)])


def append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


ALIGN_YOUR_STEPS_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
GITS_SD1 = (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029)
GITS_SDXL = (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029)

SCHEDULES: dict[str, Schedule] = {
    "Automatic": uniform,
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "Polyexponential": polyexponential,
    "SGM Uniform": sgm_uniform,
    "KL Optimal": kl_optimal,
    "Align Your Steps": align_your_steps,
    "Align Your Steps 11": align_your_steps,
    "Align Your Steps GITS": gits,
    "Simple": simple,
    "Normal": normal,
    "DDIM": ddim,
    "Beta": beta,
    "Turbo": turbo,
}
