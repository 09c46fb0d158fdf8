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
    total = len(timesteps)
    a, a_prev = levels(timesteps, alphas_cumprod)
    for step, i in enumerate(reversed(range(1, total))):
        eps = predict_eps(x, timesteps[i])
        x0 = (x - (1 - a[i]).sqrt() * eps) / a[i].sqrt()
        on_step(Step(step, total, ((1 - a[i]) / a[i]).sqrt(), x0))
        sigma = eta * ((1 - a_prev[i]) / (1 - a[i]) * (1 - a[i] / a_prev[i])).sqrt()
        x = a_prev[i].sqrt() * x0 + (1 - a_prev[i] - sigma**2).sqrt() * eps
        if eta > 0:
            x = x + sigma * noise()
    return x


def levels(timesteps: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ of every timestep, and of the one below it; below the first is timestep 0. (n,) each, float64 scalars that
    leave the latents float32."""
    below = torch.cat([timesteps.new_zeros(1), timesteps[:-1]])
    return alphas_cumprod[timesteps].double(), alphas_cumprod[below].double()


TIMESTEP_SAMPLERS: dict[str, Sampler] = {"DDIM": ddim}
