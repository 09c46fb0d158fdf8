"""The autoencoder between pixels and latents: built from a checkpoint's tensors; encodes, decodes, guesses previews.
One that overflows in fp16 goes on in fp32."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from modules.families import ldm, weights
from modules.families.family import LatentFormat
from modules.families.hints import LayoutError, building
from modules.families.weights import Weights
from modules.runtime.device import Placement

log = logging.getLogger(__name__)


def load_vae(
    file: Weights, base: Mapping[str, Any], latent: LatentFormat, placement: Placement, prefix: str = ldm.VAE
) -> "Vae":
    """Raises LayoutError, ModelFileError."""
    config = ldm.vae_config(file.header, base, prefix)
    levels = len(config["block_out_channels"])
    channels, factor = config["latent_channels"], 2 ** (levels - 1)
    if (channels, factor) != (latent.channels, latent.factor):
        raise LayoutError(
            f"its VAE has {channels} latent channels of {factor}×{factor} pixels; "
            f"the model needs {latent.channels} of {latent.factor}×{latent.factor}"
        )
    with building("VAE"):
        network = AutoencoderKL.from_config(config)
    names = ldm.vae_names(network.state_dict(), levels, prefix)
    weights.fill(network, names, file, placement.vae_dtype, placement.device, placement.channels_last)
    return Vae(network, latent, placement.device, preview_from(file.header.metadata))


class Vae:
    """Tensors are float32 at its borders, whatever the network computes in."""

    def __init__(
        self, network: AutoencoderKL, latent: LatentFormat, device: torch.device, preview: Tensor | None = None
    ):
        self.network, self.latent, self.device = network, latent, device
        self._preview = preview  # (3, C + 1): weights and bias of the linear map; None: fitted when first asked for

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """See family.Model.encode_image."""
        parts = [self._in_range(self._posterior, picture) for picture in (pixels * 2 - 1).to(self.device)[:, None]]
        mean, std = torch.cat(parts).chunk(2, dim=1)
        return (mean + std * noise.to(mean)) * self.latent.scale

    def decode(self, latents: Tensor) -> Tensor:
        """See family.Model.decode."""
        pixels = [self._in_range(self._decode, z) for z in (latents / self.latent.scale)[:, None]]
        return ((torch.cat(pixels) + 1) / 2).clamp(0, 1)

    def glimpse(self, latents: Tensor) -> Tensor:
        """See family.Model.glimpse."""
        if self._preview is None:
            self._preview = fit_preview(self)
        weight, bias = self._preview[:, :-1], self._preview[:, -1]
        return (torch.einsum("rc,bchw->brhw", weight, latents.cpu()) + bias[:, None, None]).clamp(0, 1)

    def _posterior(self, picture: Tensor) -> Tensor:
        posterior = self.network.encode(picture, return_dict=False)[0]
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def _decode(self, z: Tensor) -> Tensor:
        pixels: Tensor = self.network.decode(z, return_dict=False)[0]
        return pixels

    def _in_range(self, run: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        dtype = self.network.dtype
        result = run(given.to(dtype)).float()
        if result.isfinite().all() or dtype is torch.float32 or not given.isfinite().all():
            return result
        # Some checkpoints' VAEs leave fp16's range; from here on this one runs in fp32.
        log.warning("the VAE overflowed in %s; it goes on in fp32", str(dtype).removeprefix("torch."))
        self.network.float()
        return run(given.float())


def preview_from(metadata: Mapping[str, str]) -> Tensor | None:
    """The linear latent -> RGB map that the file brings along, as (3, C + 1), or None."""
    if "easel.preview" not in metadata:
        return None
    try:
        given = json.loads(metadata["easel.preview"])
        weight = torch.tensor(given["weight"], dtype=torch.float32)  # (3, C)
        bias = torch.tensor(given["bias"], dtype=torch.float32)  # (3,)
        return torch.cat([weight, bias[:, None]], dim=1)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        log.warning("the metadata key easel.preview is not what it should be (%s); the map is fitted anew", error)
        return None


def fit_preview(vae: Vae) -> Tensor:
    """(3, C + 1): least squares between smooth random latents and the colours that this VAE decodes them to."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(12, vae.latent.channels, 2, 2, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    pixels = vae.decode(latents.to(vae.device)).cpu()
    colours = torch.nn.functional.avg_pool2d(pixels, vae.latent.factor)  # (12, 3, 8, 8)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, vae.latent.channels)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    fitted: Tensor = torch.linalg.lstsq(inputs, colours.permute(0, 2, 3, 1).reshape(-1, 3)).solution  # (C + 1, 3)
    return fitted.T.contiguous()
