"""The autoencoder between pixels and latents: built from a checkpoint's tensors; encodes, decodes, guesses previews.
One that overflows in fp16 goes on in fp32. What does not fit into memory goes through it in tiles."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from modules.families import ldm, weights
from modules.families.attention import attend_in
from modules.families.family import LatentFormat
from modules.families.hints import LayoutError, building
from modules.families.layers import hastened
from modules.families.mixed import mixed
from modules.families.vae_tiles import tiled
from modules.families.weights import Weights
from modules.runtime.device import Placement

log = logging.getLogger(__name__)

# The most that lives at once in a call, in elements for each pixel, as multiples of the width of the network's first
# level: measured by bench/memory.py.
DECODER = 6
ENCODER = 5.03  # 5, and a little at small sizes
WORKSPACE = 1.15  # × what is computed with: what convolutions borrow, and what is lost between tensors
TILES = (96, 64, 32)  # cells of a latent in each direction that may go through at once, when not all


@dataclass(frozen=True)
class Limits:
    """What a VAE has to keep to, and may do."""

    tile: int | None = None  # cells of a latent in each direction at once; None: all
    instead: tuple[torch.dtype, ...] = (torch.float32,)  # what to compute in after an overflow, one after the other
    planned_for: torch.dtype | None = None  # in which `tile` fits
    room: Callable[[], int] | None = None  # bytes that are free for what it computes with


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
    names = list(ldm.vae_names(network.state_dict(), levels, prefix))
    if placement.vae_mixed and placement.vae_dtype is torch.float32:
        mixed(network, weights.halves_of(file, names))
    weights.fill(network, names, file, placement.vae_dtype, placement.loads_to, placement.channels_last)
    attend_in(network, placement)
    hastened(network)
    return Vae(network, latent, placement.device, preview_from(file.header.metadata))


class Vae:
    """Tensors are float32 at its borders, whatever the network computes in."""

    def __init__(
        self, network: AutoencoderKL, latent: LatentFormat, device: torch.device, preview: Tensor | None = None
    ):
        self.network, self.latent, self.device = network, latent, device
        self._preview = preview  # (3, C + 1): weights and bias of the linear map; None: fitted when first asked for
        self.limits = Limits()
        self._lock = threading.RLock()  # one batch may be decoded while the next one is encoded, or glimpsed at
        self.said: dict[str, None] = {}  # sentences for the user, in order; whoever tells them empties it
        self.tiles_used: int | None = None  # pixels of the tiles that were needed since this was set to None

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """See family.Model.encode_image."""
        factor = self.latent.factor
        parts = [
            self._in_range(self._posterior, picture, ENCODER, factor, 1)
            for picture in (pixels * 2 - 1).to(self.device)[:, None]
        ]
        mean, std = torch.cat(parts).chunk(2, dim=1)
        return (mean + std * noise.to(mean)) * self.latent.scale

    def decode(self, latents: Tensor) -> Tensor:
        """See family.Model.decode."""
        factor = self.latent.factor
        pixels = [self._in_range(self._decode, z, DECODER, 1, factor) for z in (latents / self.latent.scale)[:, None]]
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

    def _in_range(self, run: Callable[[Tensor], Tensor], given: Tensor, each: float, taken: int, made: int) -> Tensor:
        """`each`: elements of the first level's width that a pixel takes; `taken`, `made`: elements of `given` and of
        the result a latent cell."""
        with self._lock:
            return self._in_range_alone(run, given, each, taken, made)

    def _in_range_alone(
        self, run: Callable[[Tensor], Tensor], given: Tensor, each: float, taken: int, made: int
    ) -> Tensor:
        result = self._run(run, given, each, taken, made)
        for dtype in self.limits.instead:
            if result.isfinite().all() or not given.isfinite().all() or dtype is self.network.dtype:
                break
            before = str(self.network.dtype).removeprefix("torch.")
            # Some checkpoints' VAEs leave fp16's range; from here on this one computes in the other format.
            with torch.inference_mode(False):
                self.network.to(dtype)
            if self.device.type == "cuda":  # another stream may be the next to use it
                torch.cuda.current_stream(self.device).synchronize()
            sentence = f"the VAE overflowed in {before}; it goes on in {str(dtype).removeprefix('torch.')}"
            log.warning("%s", sentence)
            self.said[sentence] = None
            result = self._run(run, given, each, taken, made)
        return result

    def _run(self, run: Callable[[Tensor], Tensor], given: Tensor, each: float, taken: int, made: int) -> Tensor:
        given = given.to(self.network.dtype)
        height, width = given.shape[2] // taken, given.shape[3] // taken
        tile = self._tile(height, width, each)
        if tile is None or max(height, width) <= tile:
            return run(given).float()
        self.tiles_used = tile * self.latent.factor
        return tiled(self.network, run, given, tile, taken, made)

    def _tile(self, height: int, width: int, each: float) -> int | None:
        """Cells in each direction that go through it at once. What was planned counted on the dtype of then."""
        limits, dtype = self.limits, self.network.dtype
        if limits.room is None or dtype is limits.planned_for:
            return limits.tile
        room = limits.room()
        cell = each * self.network.config.block_out_channels[0] * dtype.itemsize * self.latent.factor**2 * WORKSPACE
        for tile in (limits.tile, *TILES):
            cells = height * width if tile is None else min(height, tile) * min(width, tile)
            if cells * cell <= room:
                return tile
        return TILES[-1]


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
