"""Schedules: the falling list of noise levels (sigmas) that a sampler walks down, or of timesteps for samplers that
walk those. Pure functions; know nothing of the sampler, but for `sigmas_for`, which applies what a sampler wants of its
schedule."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.diffusion.names import SCHEDULE_INFOS, SamplerInfo
from modules.diffusion.prediction import t_to_sigma

AUTOMATIC = "Automatic"


@dataclass(frozen=True)
class Levels:
    """The noise levels to choose from."""

    sigmas: Tensor  # (T,) float32, rising: the model's own
    sigma_min: float  # where the schedule ends, before the last 0
    sigma_max: float  # where it starts
    rho: float  # the exponent of Karras's and the polyexponential schedule


Schedule = Callable[[int, Levels], Tensor]  # steps, levels -> (steps + 1,) float32, falling, the last is 0


def resolve(sampler: SamplerInfo, schedule: str) -> str:
    """The schedule that "Automatic" means for the sampler, which is also what the infotext says."""
    return sampler.schedule or AUTOMATIC if schedule == AUTOMATIC else schedule


def sigmas_for(
    sampler: SamplerInfo,
    schedule: str,
    steps: int,
    sigmas: Tensor,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = 0.0,
    rho: float = 0.0,
    discard_next_to_last: bool = False,
) -> Tensor:
    """(steps + 1,) float32. `sigmas` (T,): the model's own; `sigma_min`, `sigma_max`, `rho`: 0 leaves the default."""
    label = resolve(sampler, schedule)
    default_rho = next(info.default_rho for info in SCHEDULE_INFOS if info.label == label)
    levels = Levels(sigmas, sigma_min or sigmas[0].item(), sigma_max or sigmas[-1].item(), rho or default_rho)
    if sampler.discard_next_to_last_sigma or discard_next_to_last:
        found = SCHEDULES[label](steps + 1, levels)
        return torch.cat([found[:-2], found[-1:]])
    return SCHEDULES[label](steps, levels)


def timesteps_for(steps: int, trained: int = 1000) -> Tensor:
    """(n,) rising: every (trained // steps)-th timestep from 1 on; n may be larger than `steps` where that does not
    divide."""
    return (torch.arange(0, trained, trained // steps) + 1).clamp(0, trained - 1)


def automatic(steps: int, levels: Levels) -> Tensor:
    """Evenly spaced timesteps of the model, from its last to its first."""
    t = torch.linspace(len(levels.sigmas) - 1, 0, steps)
    return append_zero(t_to_sigma(t, levels.sigmas))


def karras(steps: int, levels: Levels) -> Tensor:
    """Karras et al. (2022), eq. 5."""
    rho = levels.rho
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return append_zero((high + ramp * (low - high)) ** rho)


def append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SCHEDULES: dict[str, Schedule] = {"Automatic": automatic, "Karras": karras}
