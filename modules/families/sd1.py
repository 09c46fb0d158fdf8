"""Stable Diffusion 1.x: CLIP's text encoder, a UNet that predicts eps, a VAE of factor 8 (Rombach et al. 2022)."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from modules.diffusion.prediction import scaled_linear_alphas_cumprod
from modules.families import ldm, weights
from modules.families.family import Conditioning, LatentFormat, Model, TextOptions
from modules.families.text import ClipEncoder
from modules.library.header import Header, ModelFileError
from modules.prompt.tokens import Tokenizer
from modules.runtime.device import Placement

log = logging.getLogger(__name__)
CONFIGS = Path(__file__).parent / "configs" / "sd1"


class SD1Family:
    name = "SD 1.x"

    def matches(self, header: Header) -> bool:
        return (
            f"{ldm.UNET}input_blocks.0.0.weight" in header.tensors
            and f"{ldm.clip_prefix(header)}final_layer_norm.weight" in header.tensors
        )

    def load(
        self, path: Path, header: Header, config: Path | None, placement: Placement, report: Callable[[str], None]
    ) -> Model:
        try:
            hints = ldm.hints_from(config, header.metadata)
            unet_config = ldm.unet_config(header, _read("unet"), hints)
            vae_config = ldm.vae_config(header, _read("vae"))
            text_config = ldm.clip_config(header, _read("text_encoder"), hints)
        except ldm.LayoutError as error:
            raise ModelFileError(path, str(error)) from error
        if unet_config["in_channels"] != 4:
            raise ModelFileError(
                path,
                f"its UNet takes {unet_config['in_channels']} channels (an inpainting or pix2pix checkpoint); "
                "only text-to-image checkpoints, which take 4, are supported yet",
            )
        device = placement.device
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            unet = UNet2DConditionModel.from_config(unet_config)
            vae = AutoencoderKL.from_config(vae_config)
            text = CLIPTextModel(CLIPTextConfig(**text_config))
        with weights.opened(path, header) as file:
            report("text encoder")
            names = ldm.clip_names(text.state_dict(), ldm.clip_prefix(header))
            weights.fill(text, names, file, placement.text_dtype, device)
            text.embeddings.position_ids = torch.arange(text_config["max_position_embeddings"], device=device)[None]
            report("UNet")
            names = ldm.unet_names(unet.state_dict(), unet_config["layers_per_block"])
            weights.fill(unet, names, file, placement.unet_dtype, device, placement.channels_last)
            report("VAE")
            names = ldm.vae_names(vae.state_dict(), len(vae_config["block_out_channels"]))
            weights.fill(vae, names, file, placement.vae_dtype, device, placement.channels_last)
        for block in unet.up_blocks:
            if block.upsamplers:
                block.upsamplers[0].forward = partial(upsample, block.upsamplers[0].conv)
        encoder = ClipEncoder(text, Tokenizer.from_folder(CONFIGS / "tokenizer"), device)
        return SD1(encoder, unet, vae, placement, preview_from(header.metadata))


def upsample(conv: torch.nn.Conv2d, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), cut to `output_size`: doubled, convolved, then cut, as in SD 1.x's own code;
    diffusers cuts first, which gives another picture where the latent's size is odd."""
    x = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    return x if output_size is None else x[..., : output_size[0], : output_size[1]]


class SD1:
    """A loaded SD 1.x checkpoint (see family.Model)."""

    family = "SD 1.x"
    image_channels = 0

    def __init__(
        self,
        encoder: ClipEncoder,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        placement: Placement,
        preview: Tensor | None,
    ):
        facts = _read("latent")
        self.latent = LatentFormat(facts["channels"], facts["factor"], facts["scale"])
        self.alphas_cumprod = scaled_linear_alphas_cumprod(facts["timesteps"], facts["beta_start"], facts["beta_end"])
        self.device = placement.device
        self.encoder, self.unet, self.vae, self.placement = encoder, unet, vae, placement
        self.components: Mapping[str, Any] = {"unet": unet, "vae": vae, "text_encoder": encoder.network}
        self._preview = preview  # (3, C + 1): weights and bias of the linear map; None: fitted when first asked for

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        return Conditioning(self.encoder.encode(texts, options))

    def predict_eps(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None
    ) -> Tensor:
        dtype = self.placement.unet_dtype
        x = x.to(dtype)
        if self.placement.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        eps: Tensor = self.unet(x, timestep, conditioning.cross.to(dtype), return_dict=False)[0]
        return eps.float()

    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        pictures = (pixels * 2 - 1).to(self.device, self.vae.dtype)
        posterior = [self.vae.encode(one, return_dict=False)[0] for one in pictures[:, None]]
        mean, std = (torch.cat([getattr(p, part) for p in posterior]).float() for part in ("mean", "std"))
        return (mean + std * noise.to(mean)) * self.latent.scale

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self._decode_one(latent) for latent in latents[:, None]])

    def _decode_one(self, latent: Tensor) -> Tensor:
        z = latent / self.latent.scale
        pixels: Tensor = self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0].float()
        if not pixels.isfinite().all() and self.vae.dtype is torch.float16:
            # Some checkpoints' VAEs leave fp16's range; from here on this one runs in fp32.
            log.warning("the VAE overflowed in fp16; decoding in fp32")
            self.vae.float()
            pixels = self.vae.decode(z.float(), return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1)

    def glimpse(self, latents: Tensor) -> Tensor:
        if self._preview is None:
            self._preview = fit_preview(self)
        weight, bias = self._preview[:, :-1], self._preview[:, -1]
        return (torch.einsum("rc,bchw->brhw", weight, latents.cpu()) + bias[:, None, None]).clamp(0, 1)


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


def fit_preview(model: SD1) -> Tensor:
    """(3, C + 1): least squares between smooth random latents and the colours that this VAE decodes them to."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(12, model.latent.channels, 2, 2, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    pixels = model.decode(latents.to(model.device)).cpu()
    colours = torch.nn.functional.avg_pool2d(pixels, model.latent.factor)  # (12, 3, 8, 8)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, model.latent.channels)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    fitted: Tensor = torch.linalg.lstsq(inputs, colours.permute(0, 2, 3, 1).reshape(-1, 3)).solution  # (C + 1, 3)
    return fitted.T.contiguous()


def _read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded
