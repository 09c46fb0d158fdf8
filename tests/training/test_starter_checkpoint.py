"""The shipped starter checkpoint: SD1's conventions to the letter, the same picture in diffusers, and it listens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from torch.testing import assert_close

from modules.families.family import TextOptions
from tools.starter.drawing import load
from tools.starter.export import LIMIT, PREVIEW_LIMIT, load_exported
from tools.starter.ldm import from_ldm, to_ldm
from tools.starter.sampling import decode, encode_prompts, sample_latents

MODELS = Path(__file__).parents[2] / "models" / "Stable-diffusion"
STARTER = MODELS / "starter.safetensors"
TOKENIZER = Path(__file__).parents[2] / "modules" / "families" / "configs" / "sd1" / "tokenizer"


@pytest.fixture(scope="module")
def networks():
    return load_exported(STARTER)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    tokenizer.model_max_length = 77
    return tokenizer


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(STARTER, framework="pt") as stream:
        return stream.metadata()


def test_sizes_are_within_the_limits() -> None:
    assert STARTER.stat().st_size <= LIMIT
    assert (MODELS / "starter.png").stat().st_size <= PREVIEW_LIMIT
    assert len((MODELS / "starter.words.txt").read_text("utf-8").splitlines()) >= 200
    assert "Apache-2.0" in (MODELS / "starter.LICENSES.md").read_text("utf-8")


def test_yaml_and_metadata_describe_the_tensors(metadata: dict[str, str]) -> None:
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.resolution"] == "128x128"
    config = json.loads(metadata["easel.config"])
    params = yaml.safe_load((MODELS / "starter.yaml").read_text())["model"]["params"]
    unet = params["unet_config"]["params"]
    ddconfig = params["first_stage_config"]["params"]["ddconfig"]
    channels = [unet["model_channels"] * multiple for multiple in unet["channel_mult"]]
    assert channels == config["unet"]["block_out_channels"]
    assert [ddconfig["ch"] * multiple for multiple in ddconfig["ch_mult"]] == config["vae"]["block_out_channels"]
    assert all(isinstance(multiple, int) for multiple in [*unet["channel_mult"], *ddconfig["ch_mult"]])
    assert unet["num_heads"] == config["unet"]["num_heads"]
    assert params["scale_factor"] == config["vae"]["scaling_factor"] == 0.18215
    assert config["unet"]["norm_num_groups"] == config["vae"]["norm_num_groups"] == 32
    assert config["vae"]["latent_channels"] == 4
    with safe_open(STARTER, framework="pt") as stream:
        shapes = {name: stream.get_slice(name).get_shape() for name in stream.keys()}  # noqa: SIM118
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == [channels[0], 4, 3, 3]
    assert shapes["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] == [49408, 128]
    assert shapes["first_stage_model.encoder.mid.attn_1.q.weight"][2:] == [1, 1]


def test_ldm_names_go_there_and_back(networks) -> None:
    unet, vae, text = networks
    weights = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict(), unet.config)
    parts = from_ldm(weights, unet.state_dict(), vae.state_dict(), unet.config)
    for network, back in zip((unet, vae), parts[:2], strict=True):
        assert_close(back, dict(network.state_dict()))


@torch.no_grad()
def test_diffusers_draws_the_same_picture(networks, tokenizer, tmp_path: Path) -> None:
    unet, vae, text = networks
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    folder = tmp_path / "config"  # what others have for SD1 in their own folders, in the starter's sizes
    for name, part in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        part.save_config(folder / name)
    text.config.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = StableDiffusionPipeline.from_single_file(
        STARTER, config=str(folder), local_files_only=True, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))[None]
    theirs = pipeline(
        "red apple", latents=noise, num_inference_steps=20, guidance_scale=5.0, height=128, width=128, output_type="np"
    ).images
    ours = decode(vae, sample_latents(unet, text, tokenizer, ["red apple"], seed=3, cfg_scale=5.0))
    assert np.abs(theirs[0] - ours[0] / 255).max() < 0.02

    model = load(STARTER)  # the product's own loader and text encoder
    parts = model.components
    z = sample_latents(
        parts["unet"],
        parts["text_encoder"],
        tokenizer,
        ["red apple"],
        seed=3,
        cfg_scale=5.0,
        encode=lambda prompts: model.encode(list(prompts), TextOptions()).cross,
    )
    assert np.abs(theirs[0] - model.decode(z)[0].permute(1, 2, 0).numpy()).max() < 0.02


@torch.no_grad()
def test_red_apple_is_red_and_green_apple_green(networks, tokenizer) -> None:
    unet, vae, text = networks
    z = sample_latents(unet, text, tokenizer, ["red apple"] * 4 + ["green apple"] * 4)
    middle = decode(vae, z)[:, 48:96, 40:88].mean((1, 2))  # (8, RGB)
    red, green = middle[:4].mean(0), middle[4:].mean(0)
    assert red[0] > 1.3 * red[1]
    assert green[1] > green[0]


@torch.no_grad()
def test_the_preview_map_shows_nearly_the_picture(networks, tokenizer, metadata: dict[str, str]) -> None:
    unet, vae, text = networks
    z = sample_latents(unet, text, tokenizer, ["red apple", "sailboat"])
    preview = json.loads(metadata["easel.preview"])
    weight, bias = torch.tensor(preview["weight"]), torch.tensor(preview["bias"])
    rgb = torch.einsum("cz,bzhw->bhwc", weight, z) + bias  # (B, 16, 16, 3)
    pictures = torch.from_numpy(decode(vae, z)).float() / 255
    small = pictures.reshape(2, 16, 8, 16, 8, 3).mean((2, 4))
    assert (rgb.clamp(0, 1) - small).abs().mean() < 0.05  # guidance overshoots beyond white


@torch.no_grad()
def test_words_that_mean_the_same_are_encoded_alike(networks, tokenizer) -> None:
    _, _, text = networks
    cat, kitten, truck = encode_prompts(text, tokenizer, ["cat face", "kitten face", "delivery truck"])[:, -1]
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(cat, kitten, dim=0) > similarity(cat, truck, dim=0)
