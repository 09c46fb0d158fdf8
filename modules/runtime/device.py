"""Which device runs the networks, and in which number format. Imports torch: only the worker thread needs this file."""

import re
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Literal

import torch

from modules.runtime.attention import Wanted, wanted_by

Part = Literal["unet", "text", "vae"]


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
    wide_dtype: torch.dtype = torch.float32  # for parts that leave fp16's range: 16 bits too, where the device can
    unet_stored: torch.dtype | None = None  # what most of the UNet's weights are kept in, if not in unet_dtype
    upcast: bool = False  # the UNet computes in fp32 where its halves lose most (families/upcast.py)
    home: torch.device | None = None  # where weights are loaded to, to come to the device later; None: the device
    vae_mixed: bool = False  # an fp32 VAE multiplies in bf16 what it adds up in fp32 (families/mixed.py)
    attention: Wanted = Wanted()  # what the flags ask for

    @property
    def keeps_halves(self) -> bool:
        """Whether parts that compute in fp32 keep the halves of their file in memory: where the UNet is in 16 bits on a
        processor. They become fp32 layer by layer."""
        return self.device.type == "cpu" and self.unet_dtype is torch.bfloat16

    def __str__(self) -> str:
        more = (", upcast" if self.upcast else "") + (", weights in fp8" if self.fp8 else "")
        more += f", weights in {name_of(self.unet_stored)}" if self.unet_stored else ""
        return f"{self.device} {name_of(self.unet_dtype)}{more}"

    @property
    def loads_to(self) -> torch.device:
        return self.home or self.device

    def dtype_of(self, part: Part) -> torch.dtype:
        return {"unet": self.unet_dtype, "text": self.text_dtype, "vae": self.vae_dtype}[part]

    def widened(self, part: Part) -> "Placement":
        """With this part in a dtype of fp32's range, if it was to run in fp16."""
        if self.dtype_of(part) is not torch.float16:
            return self
        upcast = self.upcast and (part != "unet" or self.wide_dtype is not torch.float32)
        match part:
            case "unet":
                return replace(self, unet_dtype=self.wide_dtype, upcast=upcast)
            case "text":
                return replace(self, text_dtype=self.wide_dtype)
            case "vae":
                return replace(self, vae_dtype=self.wide_dtype)


@dataclass(frozen=True)
class Card:
    """What decides which number formats a device is good at."""

    device: torch.device
    name: str = ""
    capability: tuple[int, int] | None = None  # of NVIDIA's
    has_bf16: bool = False  # multiplies it in hardware

    @property
    def breaks_half(self) -> bool:
        """Whether fp16 gives NaN, or is not there: chips of the Turing generation without tensor cores (GTX 16xx, and
        their siblings for notebooks and workstations), those before 2016, Apple's."""
        if self.device.type == "mps":
            return True
        if self.capability is None:
            return False
        return self.capability < (5, 3) or (self.capability == (7, 5) and bool(NO_TENSOR_CORES.search(self.name)))


NO_TENSOR_CORES = re.compile(r"GTX 16\d\d|\bMX[45]50\b|\bT(?:[4-6]00|550|1000|1200|2000)\b")


def card_of(device: torch.device) -> Card:
    if device.type == "cuda":
        # ROCm's numbers are those of another maker's chips, and mean nothing here.
        capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
        has_bf16 = capability is not None and capability >= (8, 0)
        return Card(device, torch.cuda.get_device_name(device), capability, has_bf16)
    return Card(device, has_bf16=device.type == "cpu" and cpu_has_bf16())


def placement_from(flags: Namespace, card: Card | None = None) -> Placement:
    """The best placement for this machine, or this card, within what the flags allow (`--use-cpu`, `--device-id`,
    `--no-half`, …). Docs: docs/decisions/0006-number-formats.md."""
    card = card or card_of(device_from(flags))
    unet, text, vae = dtypes_for(flags, card)
    channels_last = unet is torch.bfloat16 if card.device.type == "cpu" else bool(flags.opt_channelslast)
    upcast = bool(flags.upcast_sampling) and unet is not torch.float32
    wide = torch.bfloat16 if card.has_bf16 else torch.float32
    mixed = card.device.type == "cpu" and unet is torch.bfloat16 and vae is torch.float32 and not flags.no_half_vae
    return Placement(
        *(card.device, unet, text, vae, channels_last),
        wide_dtype=wide,
        upcast=upcast,
        vae_mixed=mixed,
        attention=wanted_by(flags),
    )


def dtypes_for(flags: Namespace, card: Card) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Of UNet, text encoders and VAE."""
    whole, forced = torch.float32, flags.precision == "half"
    if flags.no_half or flags.precision == "full":
        return whole, whole, whole
    if card.device.type == "cpu":
        if not card.has_bf16:
            return whole, whole, whole
        # The text encoder is a small part of the time; the VAE is fp32 where 8 bits would show (families/mixed.py).
        others = torch.bfloat16 if forced else whole
        return torch.bfloat16, others, whole if flags.no_half_vae else others
    if card.breaks_half and not forced and not flags.upcast_sampling:
        return whole, whole, whole
    # fp16 has eight times the precision of bf16, and the models of this line were published in it.
    no_half_vae = flags.no_half_vae or (card.breaks_half and not forced)
    return torch.float16, torch.float16, whole if no_half_vae else torch.float16


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


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
