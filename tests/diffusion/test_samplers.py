"""Samplers against diffusers' schedulers as oracle, on a network that is linear, and against the exact solution."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from torch import Tensor

from modules.diffusion.names import SAMPLER_INFOS
from modules.diffusion.samplers import SAMPLERS, Step, dpmpp_2m, euler, euler_ancestral, options_of
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
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

    for t in scheduler.timesteps:  # theirs predicts before it adds the noise; the noise is drawn for every step there
        i = scheduler.step_index if scheduler.step_index is not None else 0
        sigma = scheduler.sigmas[i]
        if 0.5 <= sigma <= 5.0:
            sigma_hat = sigma * (1 + min(2.0 / 8, 2**0.5 - 1))
            x = x + again.noise() * 1.01 * (sigma_hat**2 - sigma**2) ** 0.5
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_find_a_picture_that_the_model_is_sure_of(name: str) -> None:
    target, record = torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), Recorder()
    found = SAMPLERS[name](
        lambda x, sigma: target,
        start(14.6),
        torch.tensor([14.6, 5.0, 2.0, 0.7, 0.2, 0.0]),
        record.noise,
        record.on_step,
    )
    torch.testing.assert_close(found, target)
    assert all(torch.equal(step.denoised, target) for step in record.steps)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M"])
def test_deterministic_samplers_approach_the_exact_solution(name: str) -> None:
    """Clean latents N(0, s²) have the exact denoiser x s² / (s² + sigma²), and x grows as sqrt(s² + sigma²)."""
    s = 0.5

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return x * s**2 / (s**2 + sigma**2)

    def error(steps: int) -> float:
        sigmas = torch.cat([torch.linspace(10 ** (1 / 7), 0.02 ** (1 / 7), steps) ** 7, torch.zeros(1)])
        record, x = Recorder(), start(10.0)
        found = SAMPLERS[name](exact, x, sigmas, record.noise, record.on_step)
        return float((found - x * s / (s**2 + 100) ** 0.5).abs().max())

    assert error(80) < error(20) / 3
    assert error(80) < 0.05


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
        SAMPLERS[name](denoise, start(10), torch.tensor([10.0, 5, 3, 1, 0.5, 0]), Recorder().noise, stop_at_the_second)
    assert [step.index for step in seen] == [0, 1]


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (euler, {"s_churn", "s_tmin", "s_tmax", "s_noise"}),
        (euler_ancestral, {"eta", "s_noise"}),
        (dpmpp_2m, set()),
    ],
)
def test_options_are_the_keywords(sampler: Callable[..., Tensor], options: set[str]) -> None:
    assert options_of(sampler) == options


def test_every_name_has_a_sampler_in_its_space() -> None:
    assert {info.name for info in SAMPLER_INFOS if info.space == "sigma"} == set(SAMPLERS)
    assert {info.name for info in SAMPLER_INFOS if info.space == "timestep"} == set(TIMESTEP_SAMPLERS)
