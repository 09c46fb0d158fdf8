"""Which device runs the networks, and in which number format. Imports torch: only the worker thread needs this file."""

from argparse import Namespace
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """Where a model's parts live, and the dtypes that they compute in."""

    device: torch.device
    unet_dtype: torch.dtype
    text_dtype: torch.dtype
    vae_dtype: torch.dtype
    channels_last: bool  # memory layout of convolution weights
    fp8: bool = False  # the UNet's weights are kept in 8 bits (families/fp8.py)
    fp8_full: bool = False  # and in all their bits in main memory, for LoRAs to start from

    def __str__(self) -> str:
        return f"{self.device} {str(self.unet_dtype).removeprefix('torch.')}"


def placement_from(flags: Namespace) -> Placement:
    """The best placement for this machine, within what the flags allow (`--use-cpu`, `--device-id`, `--no-half`, …)."""
    device = device_from(flags)
    whole = bool(flags.no_half) or flags.precision == "full"
    if device.type == "cpu":
        # Text encoder and VAE stay in fp32: they are a small part of the time, and bf16's 8 bits show in flat colours.
        unet = torch.bfloat16 if cpu_has_bf16() and not whole else torch.float32
        return Placement(device, unet, torch.float32, torch.float32, channels_last=unet is torch.bfloat16)
    half = torch.float32 if whole else torch.float16  # never bf16: Turing emulates it, and SD 1.x is at home in fp16
    vae = torch.float32 if whole or flags.no_half_vae else half
    return Placement(device, half, half, vae, channels_last=bool(flags.opt_channelslast))


def device_from(flags: Namespace) -> torch.device:
    """CUDA, else Apple's MPS, else the CPU; `--use-cpu all` (or sd) and `--device-id` decide first."""
    if {"all", "sd", "unet"} & {str(name).lower() for name in flags.use_cpu or ()}:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = int(flags.device_id or 0)
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"--device-id {index}: this machine has {torch.cuda.device_count()} CUDA device(s), from 0"
            )
        return torch.device("cuda", index)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere bf16 is slower than fp32."""
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.11 and newer
        found = torch.cpu.get_capabilities()
        return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch 2.10
