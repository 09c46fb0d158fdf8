"""The same networks from every format: safetensors, .ckpt, diffusers' folders whole, in shards, in half precision."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.checkpoints import Kind, Parts, original_tensors
from modules.families.latent import LatentModel
from modules.families.loader import read_model
from modules.library.header import ModelFileError
from tests.tiny import FP32, save_tiny_of, tiny_parts


def save_folder(folder: Path, kind: Kind, parts: Parts, prediction: str = "epsilon", **how: Any) -> Path:
    """As diffusers' pipelines save themselves."""
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction)
    scheduler.save_pretrained(folder / "scheduler")
    name = "StableDiffusionXLPipeline" if kind in ("sdxl", "refiner") else "StableDiffusionPipeline"
    index = {"_class_name": name, "_diffusers_version": "0.42.0", "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if network := getattr(parts, part):
            network.save_pretrained(folder / part, **how)
    return folder


def assert_same_networks(model: Any, parts: Parts, rtol: float = 0) -> None:
    for part, network in model.components.items():
        saved = getattr(parts, part).state_dict()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, saved[name], rtol=rtol, atol=rtol)
    heads = [getattr(model.components["unet"].config, key) for key in ("attention_head_dim",)]
    assert heads == [parts.unet.config.attention_head_dim]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "refiner"])
def test_diffusers_folders(tmp_path: Path, kind: Kind) -> None:
    parts = tiny_parts(kind)
    model = read_model(save_folder(tmp_path / "model", kind, parts), FP32)
    assert_same_networks(model, parts)
    for part, network in model.components.items():
        if part.startswith("text"):
            assert network.config.num_attention_heads == 2


def test_folders_in_shards_and_half_precision(tmp_path: Path) -> None:
    parts = tiny_parts("sd2")
    folder = save_folder(tmp_path / "shards", "sd2", parts, "v_prediction", max_shard_size="1MB")
    assert list((folder / "unet").glob("*-of-*.safetensors"))
    model = read_model(folder, FP32)
    assert isinstance(model, LatentModel)
    assert model.prediction == "v_prediction"
    assert_same_networks(model, parts)
    half = tiny_parts("sd2")
    for network in (half.unet, half.vae, half.text_encoder):
        network.half()
    folder = save_folder(tmp_path / "half", "sd2", half, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert_same_networks(read_model(folder, FP32), parts, rtol=1e-3)


def test_bad_folders_get_a_sentence(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", "sd1", tiny_parts("sd1"))
    index = folder / "model_index.json"
    for name in ("FluxPipeline", ["pipeline", "Evil"], None):
        index.write_text(json.dumps({"_class_name": name}), "utf-8")
        with pytest.raises(ModelFileError, match=r"^model: a folder of .* not supported"):
            read_model(folder, FP32)
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), "utf-8")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"^model: the folder is incomplete: there are no weights in vae"):
        read_model(folder, FP32)
    shards = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    shards.write_text(json.dumps({"weight_map": {"a": "../unet/diffusion_pytorch_model.safetensors"}}), "utf-8")
    with pytest.raises(ModelFileError, match="which is no file beside it"):
        read_model(folder, FP32)
    shards.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}), "utf-8")
    with pytest.raises(ModelFileError, match=r"'gone\.safetensors', which is not there"):
        read_model(folder, FP32)


def test_pickled_checkpoints(tmp_path: Path) -> None:
    parts = tiny_parts("sdxl")
    path = save_tiny_of(tmp_path / "x.safetensors", "sdxl", parts)
    yaml = "model: {params: {network_config: {params: {num_head_channels: 16}}}}"
    (tmp_path / "x.yaml").write_text(yaml, "utf-8")
    tensors = load_file(path)
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "x.ckpt")
    model = read_model(tmp_path / "x.ckpt", FP32, tmp_path / "x.yaml")
    assert torch.equal(
        model.components["unet"].state_dict()["conv_in.weight"], parts.unet.state_dict()["conv_in.weight"]
    )
    assert set(original_tensors("sdxl", parts)) == set(tensors)


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_hostile_pickles_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    def refused(name: str, match: str) -> None:
        with pytest.raises(ModelFileError, match=match):
            read_model(tmp_path / name, FP32)
        assert not canary.exists()

    torch.save({"state_dict": {"a": torch.zeros(2)}, "extra": Evil(canary)}, tmp_path / "zip.ckpt")
    refused("zip.ckpt", r"zip\.ckpt: it contains code \((posix|nt)\.system\)")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Evil(canary), protocol=2))
    refused("raw.ckpt", r"raw\.ckpt: this is a Python pickle")
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "good.ckpt") as good,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in good.infolist():
            packed.writestr(entry.filename, good.read(entry))
    refused("packed.ckpt", r"packed\.ckpt: its archive would grow")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "good.ckpt").read_bytes()[:-300])
    refused("cut.ckpt", r"cut\.ckpt: a damaged zip archive")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.ckpt")
    refused("other.ckpt", r"other\.ckpt: not a checkpoint of a known family")
