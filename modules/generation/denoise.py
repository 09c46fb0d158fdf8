"""One batch of noise becomes one batch of latents: the schedule, the sampler, the model under guidance."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from modules.diffusion.brownian import BetweenLevels, brownian_noise
from modules.diffusion.denoisers import denoiser_for, levels_for
from modules.diffusion.guidance import cfg
from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS, SamplerInfo
from modules.diffusion.noise import ImageNoise
from modules.diffusion.samplers import SAMPLERS, Sampler, Step, options_of
from modules.diffusion.schedules import resolve, sigmas_for, timesteps_for
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, PredictBoth
from modules.families.family import Conditioning, Model, TextOptions
from modules.generation.plan import ImagePlan
from modules.generation.request import GenerationRequest
from modules.prompt.composition import compose
from modules.prompt.schedule import Timeline, schedule, text_at
from modules.settings.schema import SETTINGS, Settings

RHO_SCHEDULES = frozenset(info.label for info in SCHEDULE_INFOS if info.default_rho > 0)
BETA_NAMES = {"beta_dist_alpha": "Beta schedule alpha", "beta_dist_beta": "Beta schedule beta"}
CFG_PP_SCALE = 1 / 12.5  # a CFG scale of 12.5 is full guidance for CFG++

Eps = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W) of unit variance, timestep (scalar) -> guided noise, as x


def denoise(
    batch: Sequence[ImagePlan],
    request: GenerationRequest,
    model: Model,
    settings: Settings,
    encoder: "Encoder",
    on_step: Callable[[Step], None],
) -> Tensor:
    """(B, C, H/8, W/8). `on_step` is called once a step and may raise to end early."""
    info = sampler_info(request.sampler)
    calls = request.steps * 2 if info.second_order else request.steps  # what a prompt's [from:to:when] counts
    prompts = Prompts(batch, encoder, Timeline(calls, old=settings.use_old_scheduling))
    noise = noise_of(batch, request, info, model, settings)
    if info.cfg_pp:
        both = predict_both(model, prompts, request.cfg_scale * CFG_PP_SCALE)
        return walk_timesteps(info, both, noise, request.steps, model, settings, on_step)
    predict = guided(model, prompts, request.cfg_scale)
    if info.space == "timestep":
        return walk_timesteps(info, predict, noise, request.steps, model, settings, on_step)
    return walk_sigmas(info, predict, noise, request, model, settings, on_step)


def guided(model: Model, prompts: "Prompts", scale: float) -> Eps:
    """Classifier-free guidance over the model; where it would change nothing, without the negative prompt."""
    if scale == 1 and prompts.is_plain:

        def alone(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_eps(x, t.expand(len(x)), prompts.next()[0])

        return alone
    both = predict_both(model, prompts, scale)
    return lambda x, t: both(x, t)[0]


def predict_both(model: Model, prompts: "Prompts", scale: float) -> PredictBoth:
    """The guided prediction, and the one without the prompt. Parts of a prompt (joined by AND) guide together."""
    owners = torch.tensor(prompts.owners, device=model.device)  # (P,): the image of each part
    weights = torch.tensor(prompts.weights, device=model.device).view(-1, 1, 1, 1)

    def eps(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return model.predict_eps(x, t.expand(len(x)), conditioning)

    def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        cond, uncond = prompts.next()
        parts_x = x[owners]
        if cond.cross.shape[1] == uncond.cross.shape[1]:  # one pass of the network
            together = eps(torch.cat([parts_x, x]), t, joined(cond, uncond))
            parts, without = together[: len(cond)], together[len(cond) :]
        else:
            parts, without = eps(parts_x, t, cond), eps(x, t, uncond)
        if prompts.is_plain:
            return cfg(parts, without, scale), without
        return without.index_add(0, owners, (parts - without[owners]) * weights * scale), without

    return predict


class Prompts:
    """The conditionings of one batch, call by call of the model, as editing and alternation change them."""

    def __init__(self, batch: Sequence[ImagePlan], encoder: "Encoder", timeline: Timeline):
        parts = [(i, text, weight) for i, image in enumerate(batch) for text, weight in compose(image.prompt)]
        self.owners = [i for i, _, _ in parts]
        self.weights = [weight for _, _, weight in parts]
        self._parts = [schedule(text, timeline) for _, text, _ in parts]
        self._negatives = [schedule(image.negative_prompt, timeline) for image in batch]
        self._encoder = encoder
        self._calls = 0

    @property
    def is_plain(self) -> bool:
        """Whether every image has one part of weight 1."""
        return self.owners == list(range(len(self._negatives))) and set(self.weights) == {1.0}

    def next(self) -> tuple[Conditioning, Conditioning]:
        """P of all parts, B of the negative prompts."""
        # A1111 counts calls from 0 and the steps of a prompt from 1, so that every change comes one call late.
        call, self._calls = self._calls, self._calls + 1
        cond = self._encoder.of([text_at(part, call) for part in self._parts])
        return cond, self._encoder.of([text_at(negative, call) for negative in self._negatives], negative=True)


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
    known = levels_for(info, model.alphas_cumprod)  # rising
    sigmas = sigmas_of(info, request, known, settings).to(model.device)
    x0 = denoiser_for(info, predict, model.alphas_cumprod.to(model.device))
    sampler = SAMPLERS[info.name]
    options = options_for(sampler, settings, settings.eta_ancestral)
    ends = {"sigma_min": known[0].item(), "sigma_max": known[-1].item()}
    options |= {name: value for name, value in ends.items() if name in options_of(sampler)}
    scale = (1 + sigmas[0] ** 2).sqrt() if settings.sgm_noise_multiplier else sigmas[0]
    x = noise.first() * scale
    later = between_levels(noise, sigmas, settings) if info.brownian_noise else noise.next
    return sampler(x0, x, sigmas, later, on_step, **options)


def sigmas_of(info: SamplerInfo, request: GenerationRequest, known: Tensor, settings: Settings) -> Tensor:
    """(steps + 1,): the schedule, between the ends that the user asks for."""
    low, high = settings.sigma_min, settings.sigma_max
    if settings.use_old_karras_scheduler_sigmas and resolve(info, request.schedule) == "Karras":
        low, high = low or 0.1, high or 10.0
    return sigmas_for(
        info,
        request.schedule,
        request.steps,
        known,
        sigma_min=low,
        sigma_max=high,
        rho=settings.rho,
        beta_dist_alpha=settings.beta_dist_alpha,
        beta_dist_beta=settings.beta_dist_beta,
        discard_next_to_last=settings.always_discard_next_to_last_sigma,
    )


def between_levels(noise: ImageNoise, sigmas: Tensor, settings: Settings) -> BetweenLevels:
    """A Brownian path for each image; or one for all of the batch, as A1111 did before it was told apart."""
    if not settings.no_dpmpp_sde_batch_determinism:
        return brownian_noise(noise.shape, noise.seeds, sigmas, noise.source, noise.device)
    generator = torch.Generator().manual_seed(noise.seeds[-1] % 2**64)
    seed = int(torch.randint(0, 2**63 - 1, [], generator=generator))
    whole = brownian_noise((len(noise.seeds), *noise.shape), [seed], sigmas, noise.source, noise.device)
    return lambda sigma, sigma_next: whole(sigma, sigma_next)[0]


def walk_timesteps(
    info: SamplerInfo,
    predict: Eps | PredictBoth,
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
        "uni_pc_variant": settings.uni_pc_variant,
        "uni_pc_skip_type": settings.uni_pc_skip_type,
        "uni_pc_order": settings.uni_pc_order,
        "uni_pc_lower_order_final": settings.uni_pc_lower_order_final,
        "ddpm_variance": settings.ddpm_variance,
    }
    return {name: value for name, value in given.items() if name in options_of(sampler)}


def notes_for(info: SamplerInfo, schedule: str, settings: Settings) -> dict[str, object]:
    """What of the schedule's and the sampler's parameters the user has changed, by the names that infotexts have, in
    the order of A1111; the parameters of "Beta" in any case."""
    defaults = Settings()
    if info.space == "timestep":
        options = options_of(TIMESTEP_SAMPLERS[info.name])
        keys = [key for key, name in (("eta_ddim", "eta"), ("ddpm_variance", "ddpm_variance")) if name in options]
    else:
        options = options_of(SAMPLERS[info.name])
        keys = ["always_discard_next_to_last_sigma", "sigma_min", "sigma_max"]
        keys += ["rho"] if schedule in RHO_SCHEDULES else []
        keys += list(BETA_NAMES) if schedule == "Beta" else []
        keys += ["sgm_noise_multiplier"]
        keys += ["eta_ancestral"] if "eta" in options else []
        keys += [key for key in ("s_churn", "s_tmin", "s_tmax", "s_noise") if key in options]
    return {
        BETA_NAMES.get(key) or str(SETTINGS[key].infotext): getattr(settings, key)
        for key in keys
        if key in BETA_NAMES or getattr(settings, key) != getattr(defaults, key)
    }


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


class Encoder:
    """Encodes each text of one run once."""

    def __init__(self, model: Model, options: TextOptions):
        self._model, self._options = model, options
        self._known: dict[tuple[str, bool], Conditioning] = {}

    def of(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        """Of all texts; shorter ones repeat their last vector."""
        found = [self._encoded(text, negative) for text in texts]
        longest = max(one.cross.shape[1] for one in found)
        cross = [torch.cat([z, z[:, -1:].expand(1, longest - z.shape[1], -1)], 1) for z in (one.cross for one in found)]
        vectors = [one.vector for one in found if one.vector is not None]
        return Conditioning(torch.cat(cross), torch.cat(vectors) if vectors else None)

    def _encoded(self, text: str, negative: bool) -> Conditioning:
        key = (text, negative)
        if key not in self._known:
            self._known[key] = self._model.encode([text], self._options, negative)
        return self._known[key]


def joined(one: Conditioning, other: Conditioning) -> Conditioning:
    """Both, of equal length, in one batch."""
    vectors = [c.vector for c in (one, other) if c.vector is not None]
    return Conditioning(torch.cat([one.cross, other.cross]), torch.cat(vectors) if vectors else None)


def sampler_info(name: str) -> SamplerInfo:
    return next(info for info in SAMPLER_INFOS if info.name == name)
