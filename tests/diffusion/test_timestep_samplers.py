"""Samplers of timesteps against diffusers' schedulers as oracle, on a network that is linear."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, UniPCMultistepScheduler
from torch import Tensor

from modules.diffusion.prediction import scaled_linear_alphas_cumprod
from modules.diffusion.schedules import timesteps_for
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, Variance, ddim, ddim_cfg_pp, ddpm, plms
from modules.diffusion.unipc import Skip, Variant, unipc
from tests.diffusion.test_samplers import BETAS, Recorder, Stopped, eps, start

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


def test_a_single_timestep_is_no_walk() -> None:
    record = Recorder()
    alphas = scaled_linear_alphas_cumprod()
    assert torch.equal(ddim(eps, start(), timesteps_for(1), alphas, record.noise, record.on_step), start())


def test_cfg_pp_with_both_predictions_alike_is_ddim() -> None:
    record, alphas = Recorder(), scaled_linear_alphas_cumprod()
    ours = ddim_cfg_pp(lambda x, t: (eps(x), eps(x)), start(), timesteps_for(8), alphas, record.noise, record.on_step)
    torch.testing.assert_close(ours, ddim(eps, start(), timesteps_for(8), alphas, record.noise, record.on_step))


def test_cfg_pp_goes_back_along_the_prediction_without_the_prompt() -> None:
    record, alphas = Recorder(), scaled_linear_alphas_cumprod()
    x, t = start(), torch.tensor([1, 501])
    found = ddim_cfg_pp(lambda x, t: (eps(x), 2 * x), x, t, alphas, record.noise, record.on_step)
    a, a_next = alphas[501], alphas[1]
    x0 = (x - (1 - a).sqrt() * eps(x)) / a.sqrt()
    torch.testing.assert_close(found, a_next.sqrt() * x0 + (1 - a_next).sqrt() * 2 * x)


def test_plms_walks_the_path_of_diffusers() -> None:
    scheduler = PNDMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True)
    scheduler.set_timesteps(8)
    x = start()
    for t in scheduler.timesteps[:-1]:  # theirs goes on to timestep 0
        x = scheduler.step(eps(x), t, x).prev_sample
    record = Recorder()
    ours = plms(eps, start(), timesteps_for(8), scheduler.alphas_cumprod, record.noise, record.on_step)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddpm_walks_the_path_of_diffusers(variance: Variance, steps: int) -> None:
    scheduler = DDPMScheduler(**BETAS, variance_type=f"fixed_{variance}", clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = timesteps_for(steps).flip(0)
    x, generator = start(), torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        stepped = scheduler.step(eps(x), int(t), x, generator=generator)
        x = stepped.prev_sample
    x = stepped.pred_original_sample  # theirs adds noise even at the end
    record, alphas = Recorder(), scheduler.alphas_cumprod
    ours = ddpm(eps, start(), timesteps_for(steps), alphas, record.noise, record.on_step, ddpm_variance=variance)
    assert [step.index for step in record.steps] == list(range(steps))
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The noise in x, if clean latents are N(0, 1/4); between timesteps ᾱ is interpolated by its logarithm."""
    log_alphas = scaled_linear_alphas_cumprod().double().log()
    low = t.double().floor().long()
    a = torch.lerp(log_alphas[low], log_alphas[(low + 1).clamp(max=999)], t.double() - low).exp()
    return x * ((1 - a).sqrt() / (a / 4 + 1 - a))


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
@pytest.mark.parametrize("skip", ["time_uniform", "time_quadratic", "logSNR"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_approaches_the_exact_solution(variant: Variant, skip: Skip, order: int) -> None:
    alphas = scaled_linear_alphas_cumprod()

    def error(steps: int) -> float:
        record = Recorder()
        found = unipc(
            exact, start(), timesteps_for(steps), alphas, record.noise, record.on_step,
            uni_pc_variant=variant, uni_pc_skip_type=skip, uni_pc_order=order,
        )  # fmt: skip
        spread = [float((a / 4 + 1 - a).sqrt()) for a in (alphas[999].double(), alphas[0].double())]
        return float((found - start() * spread[1] / spread[0]).abs().max())

    assert error(160) < error(10) / 2
    assert error(160) < 0.02


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
def test_unipc_walks_the_path_of_diffusers(kind: Variant) -> None:
    scheduler = UniPCMultistepScheduler(**BETAS, solver_order=2, solver_type=kind, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(10)
    walk = torch.linspace(999, 0, 11)  # the times of ours; theirs has another last one
    sigmas = torch.exp((1 - walk.frac()) * _log_sigma(walk.floor()) + walk.frac() * _log_sigma(walk.ceil()))
    scheduler.timesteps, scheduler.sigmas = walk[:-1], sigmas
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x), t, x).prev_sample
    record, alphas = Recorder(), scaled_linear_alphas_cumprod()
    options: dict[str, Any] = {"uni_pc_variant": kind, "uni_pc_order": 2}
    ours = unipc(eps, start(), timesteps_for(10), alphas, record.noise, record.on_step, **options)
    torch.testing.assert_close(ours, x, rtol=1e-2, atol=1e-2)


def _log_sigma(t: torch.Tensor) -> torch.Tensor:
    a = scaled_linear_alphas_cumprod()[t.long()]
    return ((1 - a) / a).log() / 2


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unipc_needs_no_more_steps_than_its_order(steps: int) -> None:
    calls = []

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        return exact(x, t)

    record = Recorder()
    found = unipc(counted, start(), timesteps_for(steps), scaled_linear_alphas_cumprod(), record.noise, record.on_step)
    assert found.isfinite().all()
    assert len(calls) == len(record.steps) == steps


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_on_step_may_stop_a_sampler(name: str) -> None:
    def stop(step: object) -> None:
        raise Stopped

    def predict(x: torch.Tensor, t: torch.Tensor) -> Any:
        return (eps(x), eps(x)) if name == "DDIM CFG++" else eps(x)

    with pytest.raises(Stopped):
        TIMESTEP_SAMPLERS[name](
            predict, start(), timesteps_for(5), scaled_linear_alphas_cumprod(), Recorder().noise, stop
        )
