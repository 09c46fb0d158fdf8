"""Another VAE for one run: every format, the own one back afterwards, and sentences for files that are none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from bench.checkpoints import vae_tensors
from modules.families.family import Model
from modules.families.hints import config_of
from modules.families.loader import read_model
from modules.families.vae_choice import VaeShelf
from modules.library.hashes import Fingerprint
from modules.library.header import ModelFileError
from modules.library.vaes import VaeFile
from tests.tiny import FP32, VAE, save_tiny, tiny_parts

LATENTS = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_model(save_tiny(tmp_path_factory.mktemp("models")), FP32)


@pytest.fixture(scope="module")
def other() -> Any:
    return tiny_parts("sd1", seed=9).vae


def file(path: Path) -> VaeFile:
    return VaeFile(path, Fingerprint.of(path.stat()))


def save_as(kind: str, folder: Path, vae: Any) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in vae_tensors(vae).items()}
    if kind == "original":
        save_file(tensors, folder / "x.safetensors")
        return folder / "x.safetensors"
    if kind == "pickled":
        torch.save({"state_dict": tensors | {"loss.logvar": torch.zeros(())}, "global_step": 7}, folder / "x.vae.pt")
        return folder / "x.vae.pt"
    vae.save_pretrained(folder)
    if kind == "diffusers, old":
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        today = load_file(folder / "diffusion_pytorch_model.safetensors")
        old = {}
        for name, tensor in today.items():
            for new, before in names.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
            old[name] = tensor
        save_file(old, folder / "diffusion_pytorch_model.safetensors")
    return folder / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("kind", ["original", "pickled", "diffusers", "diffusers, old"])
@torch.inference_mode()
def test_every_format_makes_the_same_picture(model: Model, other: Any, tmp_path: Path, kind: str) -> None:
    own = model.components["vae"]
    before = model.decode(LATENTS)
    expected = (other.decode(LATENTS / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    with VaeShelf().using(model, file(save_as(kind, tmp_path, other))):
        torch.testing.assert_close(model.decode(LATENTS), expected)
        assert model.components["vae"] is not own
        pixels = torch.rand(1, 3, 32, 32)
        mean = other.encode(pixels * 2 - 1).latent_dist.mean * 0.18215
        torch.testing.assert_close(model.encode_image(pixels, torch.zeros(1, 4, 4, 4)), mean)
    assert model.components["vae"] is own
    assert torch.equal(model.decode(LATENTS), before)


def test_the_own_one_is_back_after_an_error(model: Model, other: Any, tmp_path: Path) -> None:
    own = model.components["vae"]
    with pytest.raises(KeyError), VaeShelf().using(model, file(save_as("original", tmp_path, other))):
        raise KeyError
    assert model.components["vae"] is own
    with VaeShelf().using(model, None):
        assert model.components["vae"] is own


def test_the_last_one_is_kept(model: Model, other: Any, tmp_path: Path) -> None:
    shelf, path = VaeShelf(), save_as("original", tmp_path, other)
    with shelf.using(model, file(path)):
        first = model.components["vae"]
    with shelf.using(model, file(path)):
        assert model.components["vae"] is first
    shelf.clear()
    with shelf.using(model, file(path)):
        assert model.components["vae"] is not first


def test_wrong_files_get_a_sentence(model: Model, tmp_path: Path) -> None:
    own, shelf = model.components["vae"], VaeShelf()

    def refused(path: Path, match: str) -> None:
        with pytest.raises(ModelFileError, match=match), shelf.using(model, file(path)):
            raise AssertionError("it was taken")
        assert model.components["vae"] is own

    wide = AutoencoderKL.from_config({**config_of("sd1", "vae"), **VAE, "latent_channels": 16})
    refused(save_as("original", tmp_path, wide), r"x\.safetensors: no VAE for this SD 1\.x model: .*16 latent channels")
    save_file({"lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", r"lora\.safetensors: this is no VAE: .* 'lora_up\.weight'")
    tensors = load_file(tmp_path / "x.safetensors")
    torch.save({"state_dict": {"decoder.conv_in.weight": tensors["decoder.conv_in.weight"]}}, tmp_path / "half.pt")
    refused(tmp_path / "half.pt", r"half\.pt: no VAE for this SD 1\.x model: .*missing")
    torch.save({"a": print}, tmp_path / "code.pt")
    refused(tmp_path / "code.pt", r"code\.pt: it contains code")
