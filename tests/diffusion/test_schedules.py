"""Schedules against the lists that A1111 made."""

import json
from pathlib import Path

import pytest
import torch

from modules.diffusion.denoisers import levels_for
from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS, resolve
from modules.diffusion.prediction import scaled_linear_alphas_cumprod, sigmas_from
from modules.diffusion.schedules import SCHEDULES, sigmas_for, timesteps_for

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


FAR_ENDS = [(1e-9, 0.0), (0.0, 1e6), (1e6, 1e6), (3.0, 3.0), (14.0, 14.6), (1e-6, 1e-5)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ends", FAR_ENDS)
@pytest.mark.parametrize("rho", [0.0, 0.1, 1000.0])
def test_all_ends_make_a_schedule_that_can_be_walked(schedule: str, ends: tuple[float, float], rho: float) -> None:
    for steps in (1, 2, 20):
        asked = {"sigma_min": ends[0], "sigma_max": ends[1], "rho": rho}
        if schedule == "Karras" and rho == 0.1 and (ends[1] == 1e6 or ends[1] == 1e-5):  # ** 10 leaves float32
            with pytest.raises(ValueError, match=r"Karras cannot be computed from 1e.* with rho 0.1; choose a larger"):
                sigmas_for(SAMPLERS["Euler"], schedule, steps, SIGMAS, **asked)
            continue
        found = sigmas_for(SAMPLERS["Euler"], schedule, steps, SIGMAS, **asked)
        assert found.isfinite().all()
        assert found[0] > 0
        assert (found.diff() < 0).all()


def test_ends_the_wrong_way_round_are_told() -> None:
    with pytest.raises(ValueError, match=r"from 14\.6146 \(sigma_max\) down to 20 \(sigma_min\); choose a smaller"):
        sigmas_for(SAMPLERS["Euler"], "Karras", 8, SIGMAS, sigma_min=20.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 0.01), (0.01, 1.0), (1.0, 0.01), (1.0, 1.0)])
def test_beta_never_stands_still(alpha: float, beta: float) -> None:
    found = sigmas_for(SAMPLERS["Euler"], "Beta", 150, SIGMAS, beta_dist_alpha=alpha, beta_dist_beta=beta)
    assert (found.diff() < 0).all()


@pytest.mark.parametrize("schedule", ["Align Your Steps", "Align Your Steps 11", "Align Your Steps GITS"])
def test_sdxl_has_its_own_table(schedule: str) -> None:
    ours, sdxl = (sigmas_for(SAMPLERS["Euler"], schedule, 10, SIGMAS, sdxl=sdxl) for sdxl in (False, True))
    assert float(ours[0]) == float(sdxl[0]) == pytest.approx(14.615)
    assert not torch.allclose(ours[1:-2], sdxl[1:-2], rtol=0.01)
