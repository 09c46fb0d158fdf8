"""Samplers that walk the model's own timesteps, on latents of constant variance: z = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) eps.

sampler(predict_eps, x, timesteps, alphas_cumprod, noise, on_step, *, options …) -> x

x (B, C, H, W)              at the level of the last of the timesteps
timesteps (n,)              rising; the sampler walks them from the last to the first
alphas_cumprod (T,)         ᾱ of the model
predict_eps(x, t) -> eps    the model, guidance already applied; t is a scalar
noise, on_step              as in samplers.py
"""

from collections.abc import Callable

from torch import Tensor

from modules.diffusion.samplers import Noise, OnStep, Sampler, Step

PredictEps = Callable[[Tensor, Tensor], Tensor]


def ddim(
    predict_eps: PredictEps,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. (2021), eq. 12 and 16; eta 0 is deterministic, 1 has the noise of DDPM."""
    a = alphas_cumprod[timesteps].double()  # (n,), whose scalars leave latents float32
    total = len(timesteps) - 1
    for step, i in enumerate(range(total, 0, -1)):
        eps = predict_eps(x, timesteps[i])
        x0 = (x - (1 - a[i]).sqrt() * eps) / a[i].sqrt()
        on_step(Step(step, total, ((1 - a[i]) / a[i]).sqrt(), x0))
        sigma = eta * ((1 - a[i - 1]) / (1 - a[i]) * (1 - a[i] / a[i - 1])).sqrt()
        x = a[i - 1].sqrt() * x0 + (1 - a[i - 1] - sigma**2).sqrt() * eps
        if eta > 0:
            x = x + sigma * noise()
    return x


TIMESTEP_SAMPLERS: dict[str, Sampler] = {"DDIM": ddim}
