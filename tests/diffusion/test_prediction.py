"""From a model's betas to noise levels and back."""

import pytest
import torch
from diffusers import DDPMScheduler

from modules.diffusion.prediction import (
    add_noise,
    c_in,
    consistency_levels,
    consistency_t,
    consistency_x0,
    eps_to_x0,
    scaled_linear_alphas_cumprod,
    sigma_to_t,
    sigmas_from,
    t_to_sigma,
    v_to_eps,
    v_to_x0,
)

ALPHAS = scaled_linear_alphas_cumprod()
SIGMAS = sigmas_from(ALPHAS)


def test_levels_are_those_of_diffusers() -> None:
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
    torch.testing.assert_close(ALPHAS, theirs, rtol=2e-5, atol=0)  # theirs are summed up in float32


def test_timesteps_and_sigmas_are_inverse() -> None:
    t = torch.tensor([0.0, 0.25, 1.0, 500.5, 998.75, 999.0])
    torch.testing.assert_close(sigma_to_t(t_to_sigma(t, SIGMAS), SIGMAS), t, rtol=1e-4, atol=1e-3)


def test_sigmas_outside_the_model_get_its_ends() -> None:
    assert sigma_to_t(torch.tensor([1e-4, 100.0]), SIGMAS).tolist() == [0.0, 999.0]


def test_quantized_timesteps_are_the_nearest() -> None:
    sigma = t_to_sigma(torch.tensor([10.3, 10.7]), SIGMAS)
    assert sigma_to_t(sigma, SIGMAS, quantize=True).tolist() == [10, 11]


@pytest.mark.parametrize("t", [0, 300, 999])
def test_every_prediction_leads_to_the_same_x0(t: int) -> None:
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    sigma, alpha = SIGMAS[t].double(), ALPHAS[t].double()
    x = x0 + sigma * eps
    v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x0
    near = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(eps_to_x0(x, eps, sigma), x0)
    torch.testing.assert_close(v_to_x0(x, v, sigma), x0, **near)
    torch.testing.assert_close(v_to_eps(add_noise(x0, eps, alpha), v, alpha), eps, **near)
    torch.testing.assert_close(x * c_in(sigma), add_noise(x0, eps, alpha), **near)


def test_consistency_models_know_every_20th_level() -> None:
    levels = consistency_levels(ALPHAS)
    assert levels.tolist() == [float(ALPHAS[t]) for t in range(19, 1000, 20)]
    assert consistency_t(SIGMAS[[999, 992, 985, 19, 0]], ALPHAS).tolist() == [999, 999, 979, 19, 19]


def test_a_consistency_function_keeps_what_is_clean() -> None:
    x, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(consistency_x0(x, eps, torch.tensor(0.0), torch.tensor(0)), x)
    near_x0 = consistency_x0(x, eps, torch.tensor(14.6), torch.tensor(999))
    torch.testing.assert_close(near_x0, eps_to_x0(x, eps, torch.tensor(14.6)), rtol=1e-4, atol=1e-4)
