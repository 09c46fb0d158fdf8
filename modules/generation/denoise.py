"""One pass: a batch of noise, or of noised latents, becomes a batch of latents along a schedule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from modules.diffusion.brownian import BetweenLevels, Level, brownian_noise
from modules.diffusion.denoisers import denoiser_for, levels_for, x0_of_eps
from modules.diffusion.names import SCHEDULE_INFOS, SamplerInfo, resolve
from modules.diffusion.noise import ImageNoise
from modules.diffusion.prediction import add_noise
from modules.diffusion.samplers import SAMPLERS, Denoise, Sampler, Step, options_of
from modules.diffusion.schedules import sigmas_for, timesteps_for
from modules.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, PredictBoth
from modules.generation.guide import Guide
from modules.generation.steps import Span
from modules.settings.schema import SETTINGS, Settings

RHO_SCHEDULES = frozenset(info.label for info in SCHEDULE_INFOS if info.default_rho > 0)
BETA_NAMES = {"beta_dist_alpha": "Beta schedule alpha", "beta_dist_beta": "Beta schedule beta"}
POINT = torch.zeros(1, 1, 1, 1)
CFG_PP_SCALE = 1 / 12.5  # a CFG scale of 12.5 is full guidance for CFG++

Eps = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W) of unit variance, timestep (scalar) -> guided noise, as x
Blend = Callable[[Tensor, Tensor], Tensor]  # latents (B, C, H, W), sigma (scalar) -> latents that keep what is kept


@dataclass(frozen=True)
class Start:
    """What img2img and hires passes begin with, instead of noise alone."""

    latent: Tensor  # (B, C, H, W), clean
    blend: Blend | None = None  # what is outside a mask stays as it is
    noise_multiplier: float = 1.0
    extra_noise: float = 0.0


@dataclass(frozen=True)
class Walk:
    """One pass over one batch."""

    sampler: SamplerInfo
    schedule: str
    span: Span
    noise: ImageNoise
    guide: Guide
    alphas_cumprod: Tensor  # (T,) on the device: the noise levels of the model. The model itself may change meanwhile
    sdxl: bool = False  # which table "Align Your Steps" takes
    start: Start | None = None


def denoise(walk: Walk, settings: Settings, on_step: Callable[[Step], None]) -> Tensor:
    """(B, C, H/8, W/8). `on_step` is called once a step and may raise to end early."""
    if walk.span.walked == 0 and walk.start:  # a strength of 0
        return walk.start.latent
    if walk.sampler.space == "timestep":
        return walk_timesteps(walk, settings, on_step)
    return walk_sigmas(walk, settings, on_step)


def walk_sigmas(walk: Walk, settings: Settings, on_step: Callable[[Step], None]) -> Tensor:
    """With samplers that see the model as a denoiser at a noise level: x = x0 + sigma · eps."""
    info, start = walk.sampler, walk.start
    known = levels_for(info, walk.alphas_cumprod.cpu())  # rising
    schedule = sigmas_of(walk, known, settings).to(walk.alphas_cumprod.device)
    sigmas = schedule[min(walk.span.first, len(schedule) - 2) :]  # a schedule may be shorter than was asked for
    predict = walk.guide.eps if info.consistency else walk.guide.predicted
    x0_of = x0_of_eps if info.consistency else walk.guide.x0_of
    x0 = denoiser_for(info, predict, walk.alphas_cumprod, settings.enable_quantization, x0_of)
    if start and start.blend:
        x0 = blended(x0, start.blend)
    sampler = SAMPLERS[info.name]
    options = options_for(sampler, settings, settings.eta_ancestral)
    ends = {"sigma_min": known[0].item(), "sigma_max": known[-1].item()}
    if start:  # `sigmas` may begin anywhere; where they end counts for those that look at the ends alone
        ends = {"sigma_min": sigmas[-2].item(), "sigma_max": sigmas[0].item()}
    options |= {name: value for name, value in ends.items() if name in options_of(sampler)}
    x = noised(walk, sigmas, settings)
    between = between_levels(walk.noise, schedule, settings) if info.brownian_noise else None
    if (walk.guide.asks_for_timesteps or info.brownian_noise) and not info.adaptive:
        levels = Levels()
        with rehearsed(walk.guide) as note:
            seen = denoiser_for(info, note, walk.alphas_cumprod.cpu(), settings.enable_quantization, x0_of_eps)
            sampler(seen, POINT, sigmas.cpu(), levels, lambda step: None, **options)
        between = levels.known_to(between) if between else None
    return sampler(x0, x, sigmas, between or walk.noise.next, on_step, **options)


def noised(walk: Walk, sigmas: Tensor, settings: Settings) -> Tensor:
    """(B, C, H, W): where the sampler begins, at the level sigmas[0]."""
    noise, start = walk.noise.first(), walk.start
    if start is None:
        return noise * ((1 + sigmas[0] ** 2).sqrt() if settings.sgm_noise_multiplier else sigmas[0])
    noise = noise * start.noise_multiplier
    return start.latent + noise * (sigmas[0] + start.extra_noise)


def blended(x0: Denoise, blend: Blend) -> Denoise:
    """The model's guess, with what is to be kept put back in."""
    return lambda x, sigma: blend(x0(x, sigma), sigma)


def sigmas_of(walk: Walk, known: Tensor, settings: Settings) -> Tensor:
    """(steps + 1,): the whole schedule, between the ends that the user asks for."""
    low, high = settings.sigma_min, settings.sigma_max
    if settings.use_old_karras_scheduler_sigmas and resolve(walk.sampler, walk.schedule) == "Karras":
        low, high = low or 0.1, high or 10.0
    return sigmas_for(
        walk.sampler,
        walk.schedule,
        walk.span.steps,
        known,
        sigma_min=low,
        sigma_max=high,
        rho=settings.rho,
        beta_dist_alpha=settings.beta_dist_alpha,
        beta_dist_beta=settings.beta_dist_beta,
        discard_next_to_last=settings.always_discard_next_to_last_sigma,
        sdxl=walk.sdxl,
    )


def between_levels(noise: ImageNoise, sigmas: Tensor, settings: Settings) -> BetweenLevels:
    """A Brownian path for each image; or one for all of the batch, as A1111 did before it was told apart."""
    if not settings.no_dpmpp_sde_batch_determinism:
        return brownian_noise(noise.shape, noise.seeds, sigmas, noise.source, noise.device)
    generator = torch.Generator().manual_seed(noise.seeds[-1] % 2**64)
    seed = int(torch.randint(0, 2**63 - 1, [], generator=generator))
    whole = brownian_noise((len(noise.seeds), *noise.shape), [seed], sigmas, noise.source, noise.device)
    return lambda sigma, sigma_next: whole(sigma, sigma_next)[0]


def walk_timesteps(walk: Walk, settings: Settings, on_step: Callable[[Step], None]) -> Tensor:
    """With samplers that walk the model's own timesteps, in its own unit-variance space."""
    info, start = walk.sampler, walk.start
    alphas_cumprod = walk.alphas_cumprod
    trained = len(alphas_cumprod)
    timesteps = timesteps_for(min(walk.span.steps, trained), trained).to(alphas_cumprod.device)
    sampler = TIMESTEP_SAMPLERS[info.name]
    options = options_for(sampler, settings, settings.eta_ddim)
    predict: Eps | PredictBoth = walk.guide.both if info.cfg_pp else walk.guide.eps
    x = walk.noise.first()
    if start:
        x, timesteps = started(start, x, timesteps, alphas_cumprod, walk.span.walked - 1)
        if start.blend:
            predict = of_blended(predict, start.blend, alphas_cumprod)
        if "start" in options_of(sampler):
            options["start"] = (float(timesteps[-1]) + 1) / len(alphas_cumprod)
    if walk.guide.asks_for_timesteps:
        with rehearsed(walk.guide) as note:
            seen = (lambda x, t: (note(x, t), x)) if info.cfg_pp else note
            sampler(seen, POINT, timesteps.cpu(), alphas_cumprod.cpu(), no_noise, lambda step: None, **options)
    return sampler(predict, x, timesteps, alphas_cumprod, walk.noise.next, on_step, **options)


@contextmanager
def rehearsed(guide: Guide) -> Iterator[Eps]:
    """Within, the sampler walks once in main memory with a single number for a latent; what it asked a model for, the
    guide is told. So every timestep is known there, also those between the steps, and none is read from the device."""
    asked: list[Tensor] = []

    def note(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.float())
        return x

    yield note
    guide.expect(torch.stack(asked).tolist() if asked else [])


def no_noise(*between: Tensor) -> Tensor:
    return torch.zeros_like(POINT)


class Levels:
    """Notes between which levels a rehearsal wants noise."""

    def __init__(self) -> None:
        self._asked: list[Tensor] = []

    def __call__(self, *between: Tensor) -> Tensor:
        self._asked += between
        return torch.zeros_like(POINT)

    def known_to(self, later: BetweenLevels) -> BetweenLevels:
        """The same, told the levels as they are known in main memory: they are asked for in the same order."""
        levels = iter(torch.stack(self._asked).tolist() if self._asked else [])

        def told(sigma: Level, sigma_next: Level) -> Tensor:
            return later(next(levels), next(levels))

        return told


def started(
    start: Start, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, walked: int
) -> tuple[Tensor, Tensor]:
    """The noised latents, and the timesteps to walk. As in A1111, the level of the noise is that of the timestep above
    the first that is walked."""
    level = alphas_cumprod[timesteps[walked]]
    noise = noise * start.noise_multiplier
    x = add_noise(start.latent, noise, level) + noise * start.extra_noise * level.sqrt()
    return x, timesteps[: max(walked, 2)]


def of_blended(predict: Any, blend: Blend, alphas_cumprod: Tensor) -> Any:
    """What the model sees has the part that is to be kept put back in; the walk itself goes on without."""

    def predicted(x: Tensor, t: Tensor) -> Any:
        a = alphas_cumprod.take(t.long().clamp(0, len(alphas_cumprod) - 1))
        return predict(blend(x, ((1 - a) / a).sqrt()), t)

    return predicted


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
