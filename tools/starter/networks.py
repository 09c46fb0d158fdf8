"""The three networks of the starter: how big they are, and how they are built. SD1's architecture, only smaller."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from modules.runtime.device import cpu_has_bf16

SCALE = 0.18215  # between the VAE's latents and the UNet's, as in every SD1 checkpoint
GROUPS = 32  # of GroupNorm; others assume it, it cannot be read off the weights


@dataclass(frozen=True)
class UNetSizes:
    channels: tuple[int, ...] = (64, 128, 192)
    layers: int = 1  # residual blocks a level
    attention: tuple[bool, ...] = (False, True, True)  # cross-attention at this level
    heads: int = 4


@dataclass(frozen=True)
class TextSizes:
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512


@dataclass(frozen=True)
class VaeSizes:
    channels: tuple[int, ...] = (64, 64, 128, 128)  # whole multiples of the first: LDM's yaml can say nothing else
    layers: int = 1


def make_unet(sizes: UNetSizes, context: int) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attention)]
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        cross_attention_dim=context,
        attention_head_dim=sizes.heads,  # for SD1's UNet diffusers takes the number of heads from this field
        norm_num_groups=GROUPS,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
    )


def make_text_encoder(sizes: TextSizes) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            projection_dim=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def make_vae(sizes: VaeSizes) -> AutoencoderKL:
    levels = len(sizes.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        latent_channels=4,
        norm_num_groups=GROUPS,
        sample_size=128,
        scaling_factor=SCALE,
    )


def load_unet(folder: Path) -> UNet2DConditionModel:
    """A trained UNet; one trained with fewer norm groups is taken over, and gets used to 32 in further training."""
    fields = UNet2DConditionModel.load_config(folder)
    unet = UNet2DConditionModel.from_config({**fields, "norm_num_groups": GROUPS})
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder).state_dict())
    return unet


def use_fast_attention(unet: UNet2DConditionModel, text: CLIPTextModel, device: torch.device) -> None:
    """In bf16 on a CPU plain attention trains 1.35 times as fast as PyTorch's fused kernel; in fp32 0.9 times."""
    if device.type == "cpu" and cpu_has_bf16():
        unet.set_attn_processor(AttnProcessor())
        text.set_attn_implementation("eager")


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 where it is hardware's. A CPU that must imitate it takes ten times as long as in fp32."""
    fast = device.type != "cpu" or cpu_has_bf16()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
