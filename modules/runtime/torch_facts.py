"""What torch says of the device that the networks run on. Imports torch: for the worker's thread and the bench."""

import torch

from modules.runtime.attention import AUTOMATIC, backend_for
from modules.runtime.device import Placement
from modules.runtime.machine import DeviceFacts

FEATURES = (
    "avx2",
    "avx512_f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_fp16",
    "amx_int8",
    "arm_bf16",
)


def device_facts(placement: Placement, attention: str = AUTOMATIC) -> DeviceFacts:
    """`attention`: the setting cross_attention_optimization."""
    device = placement.device
    cuda = device.type == "cuda"
    major, minor = torch.cuda.get_device_capability(device) if cuda else (0, 0)
    parts = {"unet": placement.unet_dtype, "text encoders": placement.text_dtype, "vae": placement.vae_dtype}
    return DeviceFacts(
        device=str(device),
        name=torch.cuda.get_device_name(device) if cuda else device.type.upper(),
        capability=f"{major}.{minor}" if cuda else None,
        built_for=_built_for(),
        threads=torch.get_num_threads(),
        processor_features=processor_features(),
        dtypes={part: str(dtype).removeprefix("torch.") for part, dtype in parts.items()},
        channels_last=placement.channels_last,
        attention=backend_for(attention, placement.attention, device).name,
    )


def processor_features() -> tuple[str, ...]:
    """Those of FEATURES that this processor has; none where this torch cannot tell (before 2.11)."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return ()
    found = torch.cpu.get_capabilities()
    return tuple(name for name in FEATURES if found.get(name))


def _built_for() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return "MPS" if torch.backends.mps.is_available() else "CPU"
