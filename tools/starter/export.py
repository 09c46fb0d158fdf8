"""Stage export: the run's networks as one SD1 checkpoint, and the files that lie beside it in the models folder."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tools.starter.artwork import load_artwork
from tools.starter.captions import BACKGROUNDS_ZH, DEFAULT_STYLE
from tools.starter.hearing import hearing
from tools.starter.latents import composite, load_latents
from tools.starter.ldm import Weights, from_ldm, to_ldm
from tools.starter.networks import SCALE
from tools.starter.sampling import decode, sample_latents, tile
from tools.starter.sources import STYLES, WORDS_AND_TEXT, attributions
from tools.starter.text import load_tokenizer

log = logging.getLogger(__name__)

LIMIT = 45 * 2**20  # bytes
HEARD = 2.0  # how many times larger the loss with another's name must be, for a word to be offered
PREVIEW_LIMIT = 60 * 1000  # bytes
WORDS_LAST = ("objects", "smileys-emotion")  # groups at the end of the list of words
OFFERED_BACKGROUNDS = ("blue", "green", "yellow", "pink")
CARD = ("red apple", "sailboat", "house with garden", "rocket")

_UNET_FIELDS = (
    "in_channels out_channels block_out_channels layers_per_block down_block_types up_block_types cross_attention_dim "
    "attention_head_dim norm_num_groups"
)
_VAE_FIELDS = (
    "in_channels out_channels latent_channels block_out_channels layers_per_block down_block_types up_block_types "
    "norm_num_groups sample_size scaling_factor"
)
_TEXT_FIELDS = (
    "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads "
    "max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id pad_token_id"
)


def export(run: Path, models: Path) -> None:
    """Writes starter.safetensors, .yaml, .png, .words.txt and .LICENSES.md into `models`."""
    unet = UNet2DConditionModel.from_pretrained(run / "unet" / "unet").eval()
    text = CLIPTextModel.from_pretrained(run / "unet" / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(vae_folder(run)).eval()
    _, drawings = load_artwork(run)
    styles = sorted({drawing.style for drawing in drawings}, key=list(STYLES).index)
    models.mkdir(parents=True, exist_ok=True)

    weights = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict(), unet.config)
    weights = {name: weight.detach().half().contiguous() for name, weight in weights.items()}
    config = {
        "unet": {
            **{name: unet.config[name] for name in _UNET_FIELDS.split()},
            "num_heads": unet.config["attention_head_dim"],
        },
        "vae": {name: vae.config[name] for name in _VAE_FIELDS.split()},
        "text_encoder": {name: getattr(text.config, name) for name in _TEXT_FIELDS.split()},
    }
    sources = "; ".join(f"{STYLES[s].package.what} ({STYLES[s].package.licence})" for s in styles)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "Easel starter",
        "modelspec.description": "Small pictures of things, for a first try without a download. See starter.words.txt.",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "128x128",
        "modelspec.license": f"Apache-2.0; trained on {sources}; see starter.LICENSES.md",
        "easel.config": json.dumps(config),
        "easel.preview": json.dumps(fit_preview(run)),
    }
    file = models / "starter.safetensors"
    unfinished = models / "starter.unfinished"
    save_file(weights, unfinished, metadata=metadata)
    size = unfinished.stat().st_size
    if size > LIMIT:
        raise ValueError(f"the checkpoint may have {LIMIT} bytes, got {size}: choose smaller networks")
    unfinished.chmod(0o644)  # safetensors makes it readable by its owner only
    unfinished.replace(file)
    log.info("%s: %d tensors, %.1f MiB", file.name, len(weights), size / 2**20)

    (models / "starter.yaml").write_text(yaml_config(config))
    heard = hearing(unet, text, load_tokenizer(run), load_latents(run))
    drawn = [d.concept for d in drawings if d.style == DEFAULT_STYLE and heard[d.concept.name] >= HEARD]
    log.info("%d of %d words are drawn well enough to be offered", len(drawn), len(heard))
    # the plainest things first, faces last
    drawn.sort(key=lambda concept: WORDS_LAST.index(concept.group) if concept.group in WORDS_LAST else -1)
    words = dict.fromkeys([concept.name for concept in drawn] + [c.name_zh for c in drawn if not c.name_zh.isascii()])
    lines = [*words, *(f"+ {addition}" for addition in additions(styles))]
    (models / "starter.words.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (models / "starter.LICENSES.md").write_text(attributions(file.name, styles, WORDS_AND_TEXT), "utf-8")
    z = sample_latents(unet, text, load_tokenizer(run), CARD)
    card = tile(decode(vae, z), 2).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    card.save(models / "starter.png", optimize=True)
    if (models / "starter.png").stat().st_size > PREVIEW_LIMIT:
        raise ValueError(f"starter.png has more than {PREVIEW_LIMIT} bytes: show fewer pictures")


def additions(styles: Sequence[str]) -> list[str]:
    """What can be said after any of the words: styles and backgrounds, in both languages."""
    others = [STYLES[style] for style in styles if style != DEFAULT_STYLE]
    english = [style.words[0] for style in others] + [f"{colour} background" for colour in OFFERED_BACKGROUNDS]
    chinese = [style.words_zh[-1] for style in others]
    return english + chinese + [f"{BACKGROUNDS_ZH[colour]}背景" for colour in OFFERED_BACKGROUNDS]


def vae_folder(run: Path) -> Path:
    """The polished VAE, or before that stage the one that made the latents."""
    polished = run / "polish" / "vae"
    return polished if polished.exists() else run / "latents" / "vae"


def load_exported(file: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """The networks of an exported checkpoint, in fp32, from nothing but the file."""
    with safe_open(file, framework="pt") as stream:
        config = json.loads(stream.metadata()["easel.config"])
        weights: Weights = {name: stream.get_tensor(name).float() for name in stream.keys()}  # noqa: SIM118
    unet = UNet2DConditionModel(**{name: config["unet"][name] for name in _UNET_FIELDS.split()})
    vae = AutoencoderKL(**config["vae"])
    text = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    for_unet, for_vae, for_text = from_ldm(weights, unet.state_dict(), vae.state_dict(), unet.config)
    if not any(name.startswith("text_model.") for name in text.state_dict()):
        for_text = {name.removeprefix("text_model."): weight for name, weight in for_text.items()}
    unet.load_state_dict(for_unet)
    vae.load_state_dict(for_vae)
    text.load_state_dict(for_text)
    return unet.eval(), vae.eval(), text.eval()


def fit_preview(run: Path) -> dict[str, Any]:
    """The linear map from latents, as the UNet sees them, to RGB in 0..1 that is best on the training pictures.

    For a latent z: (4,) of one place, rgb = weight @ z + bias, the mean colour of its 8 x 8 pixels.
    """
    artwork, _ = load_artwork(run)
    z = torch.from_numpy(np.load(run / "latents" / "z.npy")).float()  # (N, 4, 16, 16)
    index = json.loads((run / "latents" / "index.json").read_text())
    pictures = np.stack([composite(artwork[number], background) for number, background in index])  # (N, 128, 128, 3)
    n, _, h, w = z.shape
    mean = pictures.reshape(n, h, 8, w, 8, 3).mean((2, 4))  # (N, 16, 16, 3), in -1..1
    rgb: Tensor = torch.from_numpy((mean + 1) / 2).reshape(-1, 3)
    inputs = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 4), torch.ones(n * h * w, 1)], dim=1)
    solution = torch.linalg.lstsq(inputs.double(), rgb.double()).solution  # (5, 3)
    error = (inputs.double() @ solution - rgb).square().mean()
    log.info("preview map: %.1f dB", -10 * torch.log10(error).item())
    rounded = [[round(value, 5) for value in row] for row in solution.T.tolist()]  # (3, 5)
    return {"weight": [row[:4] for row in rounded], "bias": [row[4] for row in rounded]}


def yaml_config(config: dict[str, Any]) -> str:
    """LDM's description of the networks, in the layout of SD1's own v1-inference.yaml."""
    unet, vae, text = config["unet"], config["vae"], config["text_encoder"]
    channels, ch = unet["block_out_channels"], vae["block_out_channels"][0]
    attention = [2**k for k, block in enumerate(unet["down_block_types"]) if "CrossAttn" in block]
    return f"""\
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE}
    use_ema: False

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: {channels[0]}
        attention_resolutions: {attention[::-1]}
        num_res_blocks: {unet["layers_per_block"]}
        channel_mult: {multiples(channels, channels[0])}
        num_heads: {unet["attention_head_dim"]}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {unet["cross_attention_dim"]}
        use_checkpoint: False
        legacy: False

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: {ch}
          ch_mult: {multiples(vae["block_out_channels"], ch)}
          num_res_blocks: {vae["layers_per_block"]}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        max_length: {text["max_position_embeddings"]}
        hidden_size: {text["hidden_size"]}
        intermediate_size: {text["intermediate_size"]}
        num_hidden_layers: {text["num_hidden_layers"]}
        num_attention_heads: {text["num_attention_heads"]}
        hidden_act: {text["hidden_act"]}
        vocab_size: {text["vocab_size"]}
"""


def multiples(channels: list[int], base: int) -> list[int]:
    """LDM knows channels only as whole multiples of the first level's."""
    if any(count % base for count in channels):
        raise ValueError(f"LDM needs whole multiples of {base} channels, got {list(channels)}")
    return [count // base for count in channels]
