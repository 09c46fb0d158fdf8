"""One batch of noise becomes one batch of latents: the schedule, the sampler, the model under guidance."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from modules.diffusion.guidance import cfg
from modules.diffusion.names import SAMPLER_INFOS, SamplerInfo
from modules.diffusion.noise import ImageNoise
from modules.diffusion.prediction import c_in, eps_to_x0, sigma_to_t, sigmas_from
from modules.diffusion.samplers import SAMPLERS, Sampler, Step, options_of
from modules.diffusion.schedules import sigmas_for, timesteps_for
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS
from modules.families.family import Model, TextOptions
from modules.generation.plan import ImagePlan
from modules.generation.request import GenerationRequest
from modules.settings.schema import Settings

Eps = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W) of unit variance, timestep (scalar) -> guided noise, as x


def denoise(
    batch: Sequence[ImagePlan],
    request: GenerationRequest,
    model: Model,
    settings: Settings,
    conditioning: "Conditioning",
    on_step: Callable[[Step], None],
) -> Tensor:
    """(B, C, H/8, W/8). `on_step` is called once a step and may raise to end early."""
    info = sampler_info(request.sampler)
    cond = conditioning.of([image.prompt for image in batch])
    uncond = conditioning.of([image.negative_prompt for image in batch]) if request.cfg_scale != 1 else None
    predict = guided(model, cond, uncond, request.cfg_scale)
    noise = noise_of(batch, request, info, model, settings)
    if info.space == "timestep":
        return walk_timesteps(info, predict, noise, request.steps, model, settings, on_step)
    return walk_sigmas(info, predict, noise, request, model, settings, on_step)


def guided(model: Model, cond: Tensor, uncond: Tensor | None, scale: float) -> Eps:
    """Classifier-free guidance over the model. cond, uncond: (B, 77·n, D); uncond None: the prompt alone."""

    def eps(x: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        return model.predict_eps(x, t.expand(len(x)), conditioning)

    if uncond is None:
        return lambda x, t: eps(x, t, cond)
    if cond.shape != uncond.shape:
        return lambda x, t: cfg(eps(x, t, cond), eps(x, t, uncond), scale)
    both = torch.cat([cond, uncond])

    def together(x: Tensor, t: Tensor) -> Tensor:  # one pass of the network
        with_prompt, without = eps(torch.cat([x, x]), t, both).chunk(2)
        return cfg(with_prompt, without, scale)

    return together


def walk_sigmas(
    info: SamplerInfo,
    predict: Eps,
    noise: ImageNoise,
    request: GenerationRequest,
    model: Model,
    settings: Settings,
    on_step: Callable[[Step], None],
) -> Tensor:
    """With samplers that see the model as a denoiser at a noise level: x = x0 + sigma · eps."""
    known = sigmas_from(model.alphas_cumprod)  # (T,)
    sigmas = sigmas_for(info, request.schedule, request.steps, known).to(model.device)
    known = known.to(model.device)

    def x0(x: Tensor, sigma: Tensor) -> Tensor:
        return eps_to_x0(x, predict(x * c_in(sigma), sigma_to_t(sigma, known)), sigma)

    sampler = SAMPLERS[info.name]
    options = options_for(sampler, settings, settings.eta_ancestral)
    return sampler(x0, noise.first() * sigmas[0], sigmas, noise.next, on_step, **options)


def walk_timesteps(
    info: SamplerInfo,
    predict: Eps,
    noise: ImageNoise,
    steps: int,
    model: Model,
    settings: Settings,
    on_step: Callable[[Step], None],
) -> Tensor:
    """With samplers that walk the model's own timesteps, in its own unit-variance space."""
    timesteps = timesteps_for(steps, len(model.alphas_cumprod)).to(model.device)
    alphas_cumprod = model.alphas_cumprod.to(model.device)
    sampler = TIMESTEP_SAMPLERS[info.name]
    options = options_for(sampler, settings, settings.eta_ddim)
    return sampler(predict, noise.first(), timesteps, alphas_cumprod, noise.next, on_step, **options)


def options_for(sampler: Sampler, settings: Settings, eta: float) -> dict[str, Any]:
    """Those of the user's sampler parameters that this sampler knows."""
    given = {
        "eta": eta,
        "s_churn": settings.s_churn,
        "s_tmin": settings.s_tmin,
        "s_tmax": settings.s_tmax or inf,  # 0 is "no limit"
        "s_noise": settings.s_noise,
    }
    return {name: value for name, value in given.items() if name in options_of(sampler)}


def noise_of(
    batch: Sequence[ImagePlan], request: GenerationRequest, info: SamplerInfo, model: Model, settings: Settings
) -> ImageNoise:
    """Every image's own noise, from its seed."""
    latent = model.latent
    return ImageNoise(
        (latent.channels, request.height // latent.factor, request.width // latent.factor),
        [image.seed for image in batch],
        settings.randn_source,
        model.device,
        later_seed_delta=settings.eta_noise_seed_delta if info.uses_ensd else 0,
    )


class Conditioning:
    """Encodes each text of one run once."""

    def __init__(self, model: Model, options: TextOptions):
        self._model, self._options = model, options
        self._known: dict[str, Tensor] = {}  # text -> (77·n, D)

    def of(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), 77·n, D); shorter ones repeat their last vector."""
        found = [self._encoded(text) for text in texts]
        longest = max(map(len, found))
        return torch.stack([torch.cat([z, z[-1:].expand(longest - len(z), -1)]) for z in found])

    def _encoded(self, text: str) -> Tensor:
        if text not in self._known:
            self._known[text] = self._model.encode([text], self._options)[0]
        return self._known[text]


def sampler_info(name: str) -> SamplerInfo:
    return next(info for info in SAMPLER_INFOS if info.name == name)
