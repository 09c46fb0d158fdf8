"""Samplers and schedules by the names that users see, with what is fixed for each. Imports no torch, so that pages and
validation can use it before torch is loaded; samplers.py and schedules.py hold the functions behind the names."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SamplerInfo:
    name: str
    aliases: tuple[str, ...]
    space: Literal["sigma", "timestep"]  # walks noise levels, or the model's own integer timesteps
    schedule: str | None = None  # what the schedule "Automatic" means for it; None: the model's own uniform timesteps
    uses_ensd: bool = False  # whether "eta noise seed delta" changes its later noise
    discard_next_to_last_sigma: bool = False
    second_order: bool = False  # calls the model about twice a step; prompt editing then counts calls of 2 · steps
    brownian_noise: bool = False  # its noise comes from a path between noise levels
    cfg_pp: bool = False  # needs the prediction without the prompt beside the guided one, and has its own CFG scale
    consistency: bool = False  # sees the model as a consistency function
    adaptive: bool = False  # measures its own error and chooses its steps by it


SAMPLER_INFOS: tuple[SamplerInfo, ...] = (
    SamplerInfo("DPM++ 2M", ("k_dpmpp_2m",), "sigma", "Karras"),
    SamplerInfo("DPM++ SDE", ("k_dpmpp_sde",), "sigma", "Karras", second_order=True, brownian_noise=True),
    SamplerInfo("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), "sigma", "Exponential", brownian_noise=True),
    SamplerInfo("DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun",), "sigma", "Exponential", brownian_noise=True),
    SamplerInfo("DPM++ 2S a", ("k_dpmpp_2s_a",), "sigma", "Karras", uses_ensd=True, second_order=True),
    SamplerInfo(
        "DPM++ 3M SDE",
        ("k_dpmpp_3m_sde",),
        "sigma",
        "Exponential",
        discard_next_to_last_sigma=True,
        brownian_noise=True,
    ),
    SamplerInfo("Euler a", ("k_euler_a", "k_euler_ancestral"), "sigma", uses_ensd=True),
    SamplerInfo("Euler", ("k_euler",), "sigma"),
    SamplerInfo("LMS", ("k_lms",), "sigma"),
    SamplerInfo("Heun", ("k_heun",), "sigma", second_order=True),
    SamplerInfo("DPM2", ("k_dpm_2",), "sigma", "Karras", discard_next_to_last_sigma=True, second_order=True),
    SamplerInfo(
        "DPM2 a",
        ("k_dpm_2_a",),
        "sigma",
        "Karras",
        uses_ensd=True,
        discard_next_to_last_sigma=True,
        second_order=True,
    ),
    SamplerInfo("DPM fast", ("k_dpm_fast",), "sigma", uses_ensd=True),
    SamplerInfo("DPM adaptive", ("k_dpm_ad",), "sigma", uses_ensd=True, adaptive=True),
    SamplerInfo("Restart", ("restart",), "sigma", "Karras", second_order=True),
    SamplerInfo("DDIM", ("ddim",), "timestep"),
    SamplerInfo("DDIM CFG++", ("ddim_cfgpp",), "timestep", cfg_pp=True),
    SamplerInfo("PLMS", ("plms",), "timestep"),
    SamplerInfo("UniPC", ("unipc",), "timestep"),
    SamplerInfo("LCM", ("k_lcm",), "sigma", consistency=True),
    SamplerInfo("DDPM", ("ddpm",), "timestep"),
)


AUTOMATIC = "Automatic"


def sampler_info(name: str) -> SamplerInfo:
    """Of a sampler's own name, not of an alias."""
    return next(info for info in SAMPLER_INFOS if info.name == name)


@dataclass(frozen=True)
class ScheduleInfo:
    label: str  # what users see and the infotext says
    name: str  # what A1111's API calls it
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False


SCHEDULE_INFOS: tuple[ScheduleInfo, ...] = (
    ScheduleInfo("Automatic", "automatic"),
    ScheduleInfo("Uniform", "uniform", need_inner_model=True),
    ScheduleInfo("Karras", "karras", default_rho=7.0),
    ScheduleInfo("Exponential", "exponential"),
    ScheduleInfo("Polyexponential", "polyexponential", default_rho=1.0),
    ScheduleInfo("SGM Uniform", "sgm_uniform", ("SGMUniform",), need_inner_model=True),
    ScheduleInfo("KL Optimal", "kl_optimal"),
    ScheduleInfo("Align Your Steps", "align_your_steps"),
    ScheduleInfo("Align Your Steps 11", "align_your_steps_11"),
    ScheduleInfo("Align Your Steps GITS", "align_your_steps_GITS"),
    ScheduleInfo("Simple", "simple", need_inner_model=True),
    ScheduleInfo("Normal", "normal", need_inner_model=True),
    ScheduleInfo("DDIM", "ddim", need_inner_model=True),
    ScheduleInfo("Beta", "beta"),
    ScheduleInfo("Turbo", "turbo", need_inner_model=True),
)


def resolve(sampler: SamplerInfo, schedule: str) -> str:
    """The schedule that "Automatic" means for the sampler, which is also what the infotext says."""
    return sampler.schedule or AUTOMATIC if schedule == AUTOMATIC else schedule
