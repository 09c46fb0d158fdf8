"""The UNet of latent diffusion: built from a checkpoint's tensors, and asked for what it predicts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from modules.families import fp8, ldm, upcast, weights
from modules.families.attention import attend_in
from modules.families.family import EDITING, INPAINTING, LatentFormat
from modules.families.hints import Hints, LayoutError, building
from modules.families.layers import hastened
from modules.families.weights import Weights
from modules.runtime.device import Placement

# By the channels taken beside the latent's.
BESIDE = {0: "text-to-image", EDITING: "instruct-pix2pix", INPAINTING: "inpainting"}


def load_unet(
    file: Weights, base: Mapping[str, Any], hints: Hints, latent: LatentFormat, placement: Placement
) -> UNet2DConditionModel:
    """Raises LayoutError, ModelFileError."""
    config = ldm.unet_config(file.header, base, hints)
    check_channels(config["in_channels"], config["out_channels"], latent.channels)
    with building("UNet"):
        unet = UNet2DConditionModel.from_config(config)
    names = ldm.unet_names(unet.state_dict(), config["layers_per_block"])
    if placement.upcast:
        upcast.upcast(unet)
    if placement.unet_stored:
        upcast.stored_in(unet, placement.unet_stored)
    if placement.fp8:
        fp8.keep(unet, placement.fp8_full)
    weights.fill(unet, names, file, placement.unet_dtype, placement.loads_to, placement.channels_last)
    attend_in(unet, placement)
    hastened(unet)
    for block in unet.up_blocks:
        if block.upsamplers:
            block.upsamplers[0].forward = partial(upsample, block.upsamplers[0].conv)
    return unet


def check_channels(taken: int, given: int, latent: int) -> None:
    """Raises LayoutError for a UNet that is neither for text to image, nor inpainting, nor instruct-pix2pix."""
    if taken - latent in BESIDE and given == latent:
        return
    known = ", ".join(f"{latent + more} ({name})" for more, name in BESIDE.items())
    raise LayoutError(f"its UNet takes {taken} channels and gives {given}; known are {known}, and {latent} given")


def upsample(conv: torch.nn.Conv2d, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), cut to `output_size`: doubled, convolved, then cut, as in SD 1.x's own code;
    diffusers cuts first, which gives another picture where the latent's size is odd."""
    x = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    return x if output_size is None else x[..., : output_size[0], : output_size[1]]
