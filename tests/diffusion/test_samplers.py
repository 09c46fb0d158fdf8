"""Samplers against diffusers' schedulers as oracle, on a network that is linear, and against the exact solution."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
)
from torch import Tensor

from modules.diffusion.brownian import brownian_noise
from modules.diffusion.denoisers import levels_for
from modules.diffusion.dpm_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun
from modules.diffusion.dpm_solver import dpm_adaptive, dpm_fast, dpmpp_2m
from modules.diffusion.names import SAMPLER_INFOS
from modules.diffusion.prediction import scaled_linear_alphas_cumprod
from modules.diffusion.samplers import SAMPLERS, euler, euler_ancestral, heun, lcm, lms, restart_walk
from modules.diffusion.schedules import SCHEDULES, sigmas_for
from modules.diffusion.steps import Sampler, Step, options_of
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
INFOS = {info.name: info for info in SAMPLER_INFOS}
WEIGHTS = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) / 2


def eps(x: Tensor, t: Tensor | None = None) -> Tensor:
    """A network: predicts the noise from the scaled input."""
    return torch.einsum("oc,bchw->bohw", WEIGHTS, x)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return x - sigma * eps(x / (sigma**2 + 1) ** 0.5)


def start(scale: float = 1.0) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * scale


@dataclass
class Recorder:
    """Noise from one generator, and what on_step saw."""

    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(2))
    steps: list[Step] = field(default_factory=list)

    def noise(self) -> Tensor:
        return torch.randn(2, 4, 8, 8, generator=self.generator)

    def between(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return self.noise()

    def noise_for(self, name: str) -> Callable[..., Tensor]:
        return self.between if INFOS[name].brownian_noise else self.noise

    def on_step(self, step: Step) -> None:
        self.steps.append(step)


def run_theirs(scheduler: Any, **step_arguments: Any) -> Tensor:
    x = start(float(scheduler.init_noise_sigma))
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t)), t, x, **step_arguments).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_euler_walks_the_path_of_diffusers(steps: int) -> None:
    scheduler = EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    record = Recorder()
    ours = euler(denoise, start(float(scheduler.init_noise_sigma)), scheduler.sigmas, record.noise, record.on_step)
    torch.testing.assert_close(ours, run_theirs(scheduler), rtol=1e-4, atol=1e-4)
    assert [step.index for step in record.steps] == list(range(steps))
    assert {step.total for step in record.steps} == {steps}


def test_euler_with_churn_walks_the_path_of_diffusers() -> None:
    scheduler = EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(8)
    record, churning = Recorder(), {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 5.0, "s_noise": 1.01}
    x = start(float(scheduler.init_noise_sigma))
    ours = euler(denoise, x, scheduler.sigmas, record.noise, record.on_step, **churning)
    again = Recorder()

    for t in scheduler.timesteps:  # theirs predicts before it adds the noise
        i = scheduler.step_index if scheduler.step_index is not None else 0
        sigma = scheduler.sigmas[i]
        fresh = again.noise()  # drawn at every step
        if 0.5 <= sigma <= 5.0:
            sigma_hat = sigma * (1 + min(2.0 / 8, 2**0.5 - 1))
            x = x + fresh * 1.01 * (sigma_hat**2 - sigma**2) ** 0.5
            scheduler.sigmas[i] = sigma_hat
        x = scheduler.step(eps(x / (scheduler.sigmas[i] ** 2 + 1) ** 0.5), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_euler_ancestral_walks_the_path_of_diffusers() -> None:
    scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(8)
    record = Recorder()
    x = start(float(scheduler.init_noise_sigma))
    ours = euler_ancestral(denoise, x, scheduler.sigmas, record.noise, record.on_step)
    theirs = run_theirs(scheduler, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_euler_ancestral_without_eta_is_euler() -> None:
    sigmas, record = torch.tensor([10.0, 3.0, 1.0, 0.0]), Recorder()
    plain = euler(denoise, start(10), sigmas, record.noise, record.on_step)
    torch.testing.assert_close(euler_ancestral(denoise, start(10), sigmas, record.noise, record.on_step, eta=0), plain)


def test_dpmpp_2m_walks_the_path_of_diffusers() -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="zero", lower_order_final=False)
    scheduler.set_timesteps(8)
    record = Recorder()
    scale = (scheduler.sigmas[0] ** 2 + 1) ** 0.5  # theirs has unit variance
    ours = dpmpp_2m(denoise, start() * scale, scheduler.sigmas, record.noise, record.on_step)
    torch.testing.assert_close(ours, run_theirs(scheduler), rtol=1e-4, atol=1e-4)


def test_2m_sde_without_noise_walks_the_path_of_diffusers_2m() -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="zero", lower_order_final=False)
    scheduler.set_timesteps(8)
    record, scale = Recorder(), (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    ours = dpmpp_2m_sde(denoise, start() * scale, scheduler.sigmas, record.between, record.on_step, eta=0)
    torch.testing.assert_close(ours, run_theirs(scheduler), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sampler", "kind"), [(dpmpp_2m_sde, "midpoint"), (dpmpp_2m_sde_heun, "heun")])
def test_2m_sde_walks_the_path_of_diffusers(sampler: Sampler, kind: str) -> None:
    options = {"algorithm_type": "sde-dpmsolver++", "solver_type": kind, "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler(**BETAS, **options, lower_order_final=False)
    scheduler.set_timesteps(8)
    record, scale = Recorder(), (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    ours = sampler(denoise, start() * scale, scheduler.sigmas, record.between, record.on_step)
    theirs = run_theirs(scheduler, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_heun_walks_the_path_of_diffusers() -> None:
    scheduler = HeunDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(8)
    record, sigmas = Recorder(), torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    ours = heun(denoise, start(float(scheduler.init_noise_sigma)), sigmas, record.noise, record.on_step)
    torch.testing.assert_close(ours, run_theirs(scheduler), rtol=1e-3, atol=1e-3)


def test_lms_walks_the_path_of_diffusers() -> None:
    scheduler = LMSDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(8)
    record = Recorder()
    ours = lms(denoise, start(float(scheduler.init_noise_sigma)), scheduler.sigmas, record.noise, record.on_step)
    torch.testing.assert_close(ours, run_theirs(scheduler), rtol=1e-3, atol=1e-3)


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of clean latents N(0, 1/4); x then grows as sqrt(1/4 + sigma²)."""
    return x * 0.25 / (0.25 + sigma**2)


def levels(steps: int) -> Tensor:
    return torch.cat([torch.linspace(10 ** (1 / 7), 0.02 ** (1 / 7), steps) ** 7, torch.zeros(1)])


ENDS_ABOVE_0 = {"DPM fast", "DPM adaptive"}  # they stop at the last sigma that is not 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_find_a_picture_that_the_model_is_sure_of(name: str) -> None:
    target, record = torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), Recorder()
    sigmas = torch.tensor([14.6, 5.0, 2.0, 0.7, 0.2, 0.001, 0.0])
    found = SAMPLERS[name](lambda x, sigma: target, start(14.6), sigmas, record.noise_for(name), record.on_step)
    torch.testing.assert_close(found, target, rtol=0, atol=0.01 if name in ENDS_ABOVE_0 else 1e-5)
    assert all(torch.equal(step.denoised, target) for step in record.steps)


@pytest.mark.parametrize(
    ("name", "order"),
    [("Euler", 1), ("DPM++ 2M", 2), ("Heun", 2), ("DPM2", 2), ("LMS", 2), ("DPM fast", 2)],
)
def test_deterministic_samplers_approach_the_exact_solution(name: str, order: int) -> None:
    def error(steps: int) -> float:
        sigmas, record, x = levels(steps), Recorder(), start(10.0)
        last = sigmas[-2] if name in ENDS_ABOVE_0 else sigmas[-1]
        found = SAMPLERS[name](exact, x, sigmas, record.noise, record.on_step)
        return float((found - x * ((0.25 + last**2) / 100.25).sqrt()).abs().max())

    coarse, fine = error(20), error(80)
    assert fine < coarse / (3 if order == 1 else 8)
    assert fine < (0.05 if order == 1 else 0.005)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"LCM"}))  # LCM wants a consistency function
def test_samplers_keep_the_spread_of_clean_latents(name: str) -> None:
    """Noise goes in and comes out again: the result has the standard deviation 1/2 of the clean latents."""
    generator, shape = torch.Generator().manual_seed(3), (1, 4, 64, 64)
    sigmas = levels(60)

    def noise(*between: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = torch.randn(shape, generator=generator) * (100.25**0.5)
    options = {"eta": 1.0} if "eta" in options_of(SAMPLERS[name]) else {}
    found = SAMPLERS[name](exact, x, sigmas, noise, lambda step: None, **options)
    assert float(found.std()) == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_every_sampler_walks_every_schedule_of_few_steps(name: str, steps: int) -> None:
    info, alphas = INFOS[name], scaled_linear_alphas_cumprod()
    for schedule in SCHEDULES:
        record, sigmas = Recorder(), sigmas_for(info, schedule, steps, levels_for(info, alphas))
        between = brownian_noise((4, 8, 8), [1, 2], sigmas) if info.brownian_noise else record.noise
        found = SAMPLERS[name](exact, start(float(sigmas[0])), sigmas, between, record.on_step)
        assert found.isfinite().all(), schedule
        assert [step.index for step in record.steps] == list(range(len(record.steps)))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"LCM"}))
def test_every_sampler_walks_150_steps(name: str) -> None:
    info, alphas, record = INFOS[name], scaled_linear_alphas_cumprod(), Recorder()
    sigmas = sigmas_for(info, "Automatic", 150, levels_for(info, alphas))
    between = brownian_noise((4, 8, 8), [1, 2], sigmas) if info.brownian_noise else record.noise
    found = SAMPLERS[name](exact, start(float(sigmas[0])), sigmas, between, record.on_step)
    assert float(found.std()) == pytest.approx(0.5, rel=0.15)


def test_lcm_goes_to_x0_and_back_up() -> None:
    record, sigmas = Recorder(), torch.tensor([10.0, 3.0, 0.0])
    found = lcm(exact, start(10.0), sigmas, record.noise, record.on_step)
    again = exact(start(10.0), sigmas[0]) + Recorder().noise() * 3.0
    torch.testing.assert_close(found, exact(again, sigmas[1]))


def test_restart_goes_back_up_as_often_as_it_has_steps_for() -> None:
    for steps, times in ((19, 0), (20, 1), (35, 1), (36, 2), (60, 2)):
        walk = restart_walk(levels(steps))
        ups = [i for i in range(1, len(walk)) if walk[i][0] > walk[i - 1][1]]
        assert len(ups) == times
        assert len(walk) == steps
        for i in ups:
            assert float(walk[i][0]) == pytest.approx(2.0, rel=0.5)
            assert float(walk[i - 1][1]) == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("calls", range(1, 12))
def test_dpm_fast_calls_the_model_as_often_as_there_are_steps(calls: int) -> None:
    count = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return exact(x, sigma)

    record = Recorder()
    dpm_fast(counted, start(10.0), levels(calls), record.noise, record.on_step, sigma_min=0.02, sigma_max=10.0)
    assert count == calls


def test_dpm_adaptive_goes_in_smaller_steps_where_it_may_err_less() -> None:
    def steps(rtol: float) -> int:
        record = Recorder()
        dpm_adaptive(exact, start(10.0), levels(8), record.noise, record.on_step, rtol=rtol, atol=rtol / 6)
        assert all(step.index < step.total for step in record.steps)
        return len(record.steps)

    assert steps(0.001) > steps(0.05) + 3


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_step_may_stop_a_sampler(name: str) -> None:
    seen: list[Step] = []

    def stop_at_the_second(step: Step) -> None:
        seen.append(step)
        if step.index == 1:
            raise Stopped

    with pytest.raises(Stopped):
        noise = Recorder().noise_for(name)
        SAMPLERS[name](denoise, start(10), torch.tensor([10.0, 5, 3, 1, 0.5, 0]), noise, stop_at_the_second)
    assert [step.index for step in seen] == [0, 1]


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (euler, {"s_churn", "s_tmin", "s_tmax", "s_noise"}),
        (euler_ancestral, {"eta"}),
        (dpmpp_2m_sde, {"eta", "s_noise"}),
        (dpm_adaptive, {"eta", "sigma_min", "sigma_max", "rtol", "atol", "first_h", "accept_safety"}),
        (dpmpp_2m, set()),
    ],
)
def test_options_are_the_keywords(sampler: Callable[..., Tensor], options: set[str]) -> None:
    assert options_of(sampler) == options


def test_every_name_has_a_sampler_in_its_space() -> None:
    assert {info.name for info in SAMPLER_INFOS if info.space == "sigma"} == set(SAMPLERS)
    assert {info.name for info in SAMPLER_INFOS if info.space == "timestep"} == set(TIMESTEP_SAMPLERS)
