"""Checkpoints of random weights for the benches and tests: real networks, real single-file layout, any size."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from modules.families import ldm
from modules.families.sd1 import CONFIGS, _read


def networks(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any], seed: int = 0) -> tuple[Any, Any, Any]:
    """SD1's three networks with random weights; each dict changes SD 1.5's own sizes (families/configs/sd1)."""
    torch.manual_seed(seed)
    return (
        UNet2DConditionModel.from_config({**_read("unet"), **unet}).eval(),
        AutoencoderKL.from_config({**_read("vae"), **vae}).eval(),
        CLIPTextModel(CLIPTextConfig(**{**_read("text_encoder"), **text})).eval(),
    )


def save_single_file(
    path: Path,
    unet: Any,
    vae: Any,
    text: Any,
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
) -> Path:
    """One LDM-layout .safetensors of the three networks."""
    tensors = {}
    for own, theirs in ldm.unet_names(unet.state_dict(), unet.config.layers_per_block):
        tensors[theirs] = unet.state_dict()[own]
    for own, theirs in ldm.vae_names(vae.state_dict(), len(vae.config.block_out_channels)):
        weight = vae.state_dict()[own]
        tensors[theirs] = weight[:, :, None, None] if ".attn_1." in theirs and weight.ndim == 2 else weight
    for own, theirs in ldm.clip_names(text.state_dict(), f"{ldm.TEXT}text_model."):
        tensors[theirs] = text.state_dict()[own]
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        path,
        {"format": "pt"} | (metadata or {}),
    )
    return path


__all__ = ["CONFIGS", "networks", "save_single_file"]
