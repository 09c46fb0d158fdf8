"""Checkpoints of random weights for the benches and tests: real networks, the real single-file layouts, any size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from modules.families import ldm, open_clip, sd2, sdxl
from modules.families.hints import config_of
from modules.families.text_encoders import TOKENIZER as TOKENIZER
from modules.families.weights import Piece

Kind = Literal["sd1", "sd2", "sdxl", "refiner"]


@dataclass(frozen=True)
class Parts:
    """The networks of one model."""

    unet: Any
    vae: Any
    text_encoder: Any = None  # CLIP; of SD 2.x, OpenCLIP
    text_encoder_2: Any = None  # OpenCLIP with its projection


def networks(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any], seed: int = 0) -> tuple[Any, Any, Any]:
    """SD1's three networks with random weights; each dict changes SD 1.5's own sizes (families/configs/sd1)."""
    parts = random_parts("sd1", {"unet": unet, "vae": vae, "text_encoder": text}, seed)
    return parts.unet, parts.vae, parts.text_encoder


def random_parts(kind: Kind, sizes: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Parts:
    """Random weights; `sizes` by part change those of families/configs."""
    configs = "sdxl" if kind == "refiner" else kind
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config({**config_of(configs, "unet"), **sizes.get("unet", {})}).eval()
    vae = AutoencoderKL.from_config({**config_of(configs, "vae"), **sizes.get("vae", {})}).eval()
    text = text_2 = None
    if kind != "refiner":
        config = {**config_of(configs, "text_encoder"), **sizes.get("text_encoder", {})}
        config["num_hidden_layers"] -= kind == "sd2"  # the last one of OpenCLIP is not part of the model
        text = CLIPTextModel(CLIPTextConfig(**config)).eval()
    if configs == "sdxl":
        config = {**config_of(configs, "text_encoder_2"), **sizes.get("text_encoder_2", {})}
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    return Parts(unet, vae, text, text_2)


def save_single_file(
    path: Path,
    unet: Any,
    vae: Any,
    text: Any,
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
) -> Path:
    """One .safetensors in SD1's layout."""
    return save_original(path, "sd1", Parts(unet, vae, text), dtype, metadata)


def save_original(
    path: Path,
    kind: Kind,
    parts: Parts,
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> Path:
    """One .safetensors in the layout that checkpoints of this kind were published in; `more`: further tensors."""
    tensors = original_tensors(kind, parts) | dict(more or {})
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        path,
        {"format": "pt"} | (metadata or {}),
    )
    return path


def save_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str = "Q8_0", architecture: str = "sd1") -> Path:
    """As the community makes them: large weights quantised, those of rows that fill no blocks folded first."""
    import gguf

    quantised = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantised]
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors.items():
        numbers, is_large = tensor.detach().float().numpy(), tensor.ndim > 1 and tensor.numel() % 256 == 0
        if is_large and tensor.shape[-1] % block:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            numbers = numbers.reshape(-1, 256)
        if is_large:
            writer.add_tensor(name, gguf.quants.quantize(numbers, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def original_tensors(kind: Kind, parts: Parts) -> dict[str, Tensor]:
    """By the names of the original layout."""
    tensors = {}
    state = parts.unet.state_dict()
    for own, theirs in ldm.unet_names(state, parts.unet.config.layers_per_block):
        tensors[theirs] = state[own]
    tensors |= vae_tensors(parts.vae, ldm.VAE)
    if kind in ("sd1", "sdxl"):
        prefix = ldm.TEXT if kind == "sd1" else sdxl.CLIP_L
        for own, theirs in ldm.clip_names(parts.text_encoder.state_dict(), f"{prefix}text_model."):
            tensors[theirs] = parts.text_encoder.state_dict()[own]
    if kind == "sd2":
        tensors |= dict(open_clip_tensors(parts.text_encoder, sd2.TEXT, unused_layer=True))
    if kind in ("sdxl", "refiner"):
        prefix = sdxl.BIG_G if kind == "sdxl" else sdxl.REFINERS_BIG_G
        tensors |= dict(open_clip_tensors(parts.text_encoder_2, prefix))
    return tensors


def vae_tensors(vae: Any, prefix: str = "") -> dict[str, Tensor]:
    """By the names of the original layout; as a file of its own it has no prefix."""
    tensors = {}
    for own, theirs in ldm.vae_names(vae.state_dict(), len(vae.config.block_out_channels), prefix):
        weight = vae.state_dict()[own]
        tensors[theirs] = weight[:, :, None, None] if ".attn_1." in theirs and weight.ndim == 2 else weight
    return tensors


def open_clip_tensors(text: Any, prefix: str, unused_layer: bool = False) -> Iterator[tuple[str, Tensor]]:
    state = text.state_dict()
    pieces: dict[str, dict[int, Tensor]] = {}
    for own, theirs in open_clip.names(state, prefix):
        if isinstance(theirs, Piece):
            pieces.setdefault(theirs.name, {})[theirs.part] = state[own].T if theirs.turned else state[own]
        else:
            yield theirs, state[own]
    for name, parts in pieces.items():
        yield name, torch.cat([parts[number] for number in sorted(parts)])
    yield f"{prefix}logit_scale", torch.tensor(4.6)
    if unused_layer:
        count = text.config.num_hidden_layers
        last = f"{prefix}transformer.resblocks.{count - 1}."
        for name, tensor in list(open_clip_tensors(text, prefix)):
            if name.startswith(last):
                yield name.replace(last, f"{prefix}transformer.resblocks.{count}."), torch.randn_like(tensor)
        yield f"{prefix}text_projection", torch.randn(text.config.hidden_size, text.config.hidden_size)
