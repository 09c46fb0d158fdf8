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
    second_order: bool = False
    brownian_noise: bool = False


SAMPLER_INFOS: tuple[SamplerInfo, ...] = (
    SamplerInfo("DPM++ 2M", ("k_dpmpp_2m",), "sigma", schedule="Karras"),
    SamplerInfo("Euler a", ("k_euler_a", "k_euler_ancestral"), "sigma", uses_ensd=True),
    SamplerInfo("Euler", ("k_euler",), "sigma"),
    SamplerInfo("DDIM", ("ddim",), "timestep"),
)


@dataclass(frozen=True)
class ScheduleInfo:
    label: str  # what users see and the infotext says
    name: str  # what A1111's API calls it
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False


SCHEDULE_INFOS: tuple[ScheduleInfo, ...] = (
    ScheduleInfo("Automatic", "automatic"),
    ScheduleInfo("Karras", "karras", default_rho=7.0),
)
