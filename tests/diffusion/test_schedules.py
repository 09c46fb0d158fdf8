"""Schedules against the lists that A1111 made."""

import json
from pathlib import Path

import pytest
import torch

from modules.diffusion.denoisers import levels_for
from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.diffusion.prediction import scaled_linear_alphas_cumprod, sigmas_from
from modules.diffusion.schedules import SCHEDULES, resolve, sigmas_for, timesteps_for

DATA = json.loads((Path(__file__).parents[1] / "data" / "sigmas.json").read_text())
SAMPLERS = {info.name: info for info in SAMPLER_INFOS}
ALPHAS = scaled_linear_alphas_cumprod()
SIGMAS = sigmas_from(ALPHAS)
KNOWN = [
    key for key in DATA["sigmas"] if (parts := key.split("|"))[0] in SAMPLERS and parts[1] in SCHEDULES
]  # sampler|schedule|steps


@pytest.mark.parametrize("key", KNOWN)
def test_sigmas_are_those_of_a1111(key: str) -> None:
    name, schedule, steps = key.split("|")
    *sigmas, extra = DATA["sigmas"][key]
    found = sigmas_for(SAMPLERS[name], schedule, int(steps), levels_for(SAMPLERS[name], ALPHAS))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(sigmas), rtol=1e-6, atol=0)
    assert resolve(SAMPLERS[name], schedule) == extra.get("Schedule type", "Automatic")


@pytest.mark.parametrize("steps", DATA["timesteps"])
def test_timesteps_are_those_of_a1111(steps: str) -> None:
    assert timesteps_for(int(steps)).tolist() == DATA["timesteps"][steps]


def test_every_schedule_has_a_function_and_a_name() -> None:
    assert {info.label for info in SCHEDULE_INFOS} == set(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 150])
def test_every_schedule_falls_from_noise_to_the_end(schedule: str, steps: int) -> None:
    sigmas = sigmas_for(SAMPLERS["Euler"], schedule, steps, SIGMAS)
    assert sigmas.isfinite().all()
    assert (sigmas.diff() < 0).all()


def test_karras_takes_its_ends_and_rho_from_the_user() -> None:
    sigmas = sigmas_for(SAMPLERS["Euler"], "Karras", 5, SIGMAS, sigma_min=0.1, sigma_max=10.0, rho=1.0)
    torch.testing.assert_close(sigmas, torch.tensor([10.0, 7.525, 5.05, 2.575, 0.1, 0.0]))


def test_the_next_to_last_sigma_can_be_left_out() -> None:
    whole = sigmas_for(SAMPLERS["Euler"], "Karras", 6, SIGMAS)
    found = sigmas_for(SAMPLERS["Euler"], "Karras", 5, SIGMAS, discard_next_to_last=True)
    assert found.tolist() == [*whole[:-2].tolist(), 0.0]
