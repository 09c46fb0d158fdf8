"""Names of the same weights in two layouts: diffusers' folders, and the single file of LDM that SD1 checkpoints are."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

_UNET_ENDS = {  # LDM's name of what lies outside the blocks
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_RESIDUAL = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def to_ldm(unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor], fields: Any) -> Weights:
    """One file's weights. `fields`: the UNet's diffusers config."""
    weights = {UNET + ldm: unet[name] for name, ldm in unet_names(unet, fields).items()}
    for name, ldm in vae_names(vae).items():
        # LDM's attention is made of 1 x 1 convolutions, diffusers' of linear layers
        flat = ".attn_1." in ldm and vae[name].ndim == 2
        weights[VAE + ldm] = vae[name][:, :, None, None] if flat else vae[name]
    for name, weight in text.items():
        if "position_ids" not in name:
            weights[TEXT + "text_model." + name.removeprefix("text_model.")] = weight
    return weights


def from_ldm(
    weights: Mapping[str, Tensor], unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], fields: Any
) -> tuple[Weights, Weights, Weights]:
    """UNet, VAE and text encoder for diffusers. `unet`, `vae`: state dicts of such networks, for names and shapes."""
    text = {name.removeprefix(TEXT): weight for name, weight in weights.items() if name.startswith(TEXT)}
    return (
        {name: weights[UNET + ldm] for name, ldm in unet_names(unet, fields).items()},
        {name: weights[VAE + ldm].reshape(vae[name].shape) for name, ldm in vae_names(vae).items()},
        text,
    )


def unet_names(names: Mapping[str, Tensor], fields: Any) -> dict[str, str]:
    """LDM's name for each of diffusers' names. LDM counts its blocks through, across levels."""
    blocks = _unet_blocks(fields)
    return {name: _unet_name(name, blocks) for name in names}


def _unet_name(name: str, blocks: dict[str, str]) -> str:
    for end, ldm in _UNET_ENDS.items():
        if name.startswith(end):
            return ldm + name.removeprefix(end)
    start = next((start for start in blocks if name.startswith(start)), None)
    if start is None:
        raise KeyError(f"{name} has no place in LDM's UNet")
    rest = name.removeprefix(start)
    if ".resnets." in start:
        part = next(part for part in _RESIDUAL if rest.startswith(part))
        rest = _RESIDUAL[part] + rest.removeprefix(part)
    return blocks[start] + rest


def _unet_blocks(fields: Any) -> dict[str, str]:
    levels, layers = len(fields["block_out_channels"]), fields["layers_per_block"]
    blocks = {
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
    }
    number = 1  # 0 is conv_in
    for level in range(levels):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{number}.0."
            blocks[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{number}.1."
            number += 1
        if level < levels - 1:
            blocks[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{number}.0.op."
            number += 1
    number = 0
    for level in range(levels):
        attends = "CrossAttn" in fields["up_block_types"][level]
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{number}.0."
            blocks[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{number}.1."
            if layer == layers and level < levels - 1:
                place = 2 if attends else 1
                blocks[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{number}.{place}.conv."
            number += 1
    return blocks


def vae_names(names: Mapping[str, Tensor]) -> dict[str, str]:
    """LDM's name for each of diffusers' names. LDM counts the decoder's levels from the finest."""
    levels = 1 + max(int(found[1]) for name in names if (found := re.match(r"encoder\.down_blocks\.(\d+)", name)))
    return {name: _vae_name(name, levels) for name in names}


def _vae_name(name: str, levels: int) -> str:
    ldm = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
    ldm = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", ldm)
    if found := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.*)", ldm):
        part = "block" if found[2] == "resnets" else "upsample"
        ldm = f"decoder.up.{levels - 1 - int(found[1])}.{part}.{found[3]}"
    ldm = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda found: f".mid.block_{int(found[1]) + 1}.", ldm)
    ldm = ldm.replace(".mid_block.attentions.0.", ".mid.attn_1.")
    ldm = ldm.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if ".attn_1." in ldm:
        for part, short in _VAE_ATTENTION.items():
            ldm = ldm.replace(f".attn_1.{part}.", f".attn_1.{short}.")
    return ldm
