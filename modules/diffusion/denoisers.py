"""A network that predicts noise (or v) at timesteps, seen as what samplers of noise levels want: a denoiser of x = x0 +
sigma · eps. Knows nothing of guidance; the prediction is guided already."""

from collections.abc import Callable

from torch import Tensor

from modules.diffusion.names import SamplerInfo
from modules.diffusion.prediction import (
    c_in,
    consistency_levels,
    consistency_t,
    consistency_x0,
    eps_to_x0,
    sigma_to_t,
    sigmas_from,
)
from modules.diffusion.steps import Denoise

PredictEps = Callable[[Tensor, Tensor], Tensor]  # x of unit variance, t (scalar) -> eps
Predict = PredictEps  # or v, where x0_of understands it
X0Of = Callable[[Tensor, Tensor, Tensor], Tensor]  # a prediction, x, sigma -> x0


def levels_for(sampler: SamplerInfo, alphas_cumprod: Tensor) -> Tensor:
    """The sigmas of the model, rising, that a schedule for this sampler chooses from."""
    return sigmas_from(consistency_levels(alphas_cumprod) if sampler.consistency else alphas_cumprod)


def x0_of_eps(eps: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return eps_to_x0(x, eps, sigma)


def denoiser_for(
    sampler: SamplerInfo, predict: Predict, alphas_cumprod: Tensor, quantize: bool = False, x0_of: X0Of = x0_of_eps
) -> Denoise:
    """`quantize`: ask the network for its nearest whole timestep only. Samplers of consistency models want eps."""
    sigmas = sigmas_from(alphas_cumprod)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x0_of(predict(x * c_in(sigma), sigma_to_t(sigma, sigmas, quantize)), x, sigma)

    def consistent(x: Tensor, sigma: Tensor) -> Tensor:
        t = consistency_t(sigma, alphas_cumprod)
        return consistency_x0(x, predict(x * c_in(sigma), t), sigma, t)

    return consistent if sampler.consistency else denoise
