"""Samplers and schedules by the names that other programs have for them."""

import re

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS

_SAMPLERS = {
    **{"euler_ancestral": "Euler a", "dpm_2": "DPM2", "kdpm_2": "DPM2", "dpm2_ancestral": "DPM2 a"},
    **{"dpm_2_a": "DPM2 a", "dpm_2_ancestral": "DPM2 a", "kdpm_2_a": "DPM2 a", "dpm_ad": "DPM adaptive"},
    **{"dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2": "DPM++ 2M", "pndm": "PLMS", "uni_pc": "UniPC"},
    **{"uni_pc_bh2": "UniPC", "uni_pc_bh1": "UniPC", "dpm_solver_adaptive": "DPM adaptive"},
}
_SCHEDULES = {
    **{
        "native": "Automatic",
        "default": "Automatic",
        "discrete": "Normal",
        "ddim_uniform": "DDIM",
        "ays": "Align Your Steps",
    },
    **{"sd_turbo": "Turbo", "sdturbo": "Turbo", "betasampling": "Beta", "alignyoursteps": "Align Your Steps"},
    **{"basic": "Normal", "k": "Karras"},
}


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name[:100].strip().lower().replace("++", "pp"))


_SAMPLERS |= {_plain(info.name): info.name for info in SAMPLER_INFOS}
_SCHEDULES |= {_plain(name): info.label for info in SCHEDULE_INFOS for name in (info.label, info.name, *info.aliases)}
# What may follow a sampler in one name: dpmpp_2m_k, DPM++ 2M Karras, dpmpp_2m_sde_exponential
_SUFFIXES = ("k", "karras", "exponential", "polyexponential", "sgm_uniform")


def sampler_of(name: str) -> tuple[str, str]:
    """Ours, and the schedule that the name holds; "" where there is none."""
    plain = re.sub(r"^(k_|sample_)", "", _plain(name))
    plain = re.sub(r"_gpu$", "", plain)
    if plain in _SAMPLERS:
        return _SAMPLERS[plain], ""
    for suffix in _SUFFIXES:
        if plain.endswith(f"_{suffix}") and plain.removesuffix(f"_{suffix}") in _SAMPLERS:
            return _SAMPLERS[plain.removesuffix(f"_{suffix}")], _SCHEDULES[suffix]
    return "", ""


def schedule_of(name: str) -> str:
    return _SCHEDULES.get(_plain(name), "")
