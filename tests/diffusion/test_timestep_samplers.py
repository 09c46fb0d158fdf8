"""Samplers of timesteps against diffusers' schedulers as oracle, on a network that is linear."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from modules.diffusion.schedules import timesteps_for
from modules.diffusion.timestep_samplers import ddim
from tests.diffusion.test_samplers import BETAS, Recorder, eps, start

DDIM: dict[str, Any] = {**BETAS, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_walks_the_path_of_diffusers(steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(**DDIM)
    scheduler.set_timesteps(steps)
    timesteps, record = timesteps_for(steps), Recorder()
    assert timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
    ours = ddim(eps, start(), timesteps, scheduler.alphas_cumprod, record.noise, record.on_step, eta=eta)
    assert [step.index for step in record.steps] == list(range(steps - 1))
    torch.testing.assert_close(ours, run_theirs(scheduler, eta), rtol=1e-4, atol=1e-4)


def run_theirs(scheduler: DDIMScheduler, eta: float) -> Tensor:
    x, generator = start(), torch.Generator().manual_seed(2)
    for t in scheduler.timesteps[:-1]:  # theirs goes on to timestep 0
        x = scheduler.step(eps(x), t, x, eta=eta, generator=generator).prev_sample
    return x


def test_latents_stay_float32() -> None:
    record = Recorder()
    found = ddim(eps, start(), timesteps_for(3), DDIMScheduler(**DDIM).alphas_cumprod, record.noise, record.on_step)
    assert found.dtype == torch.float32
