"""Whole runs with models of other families than SD 1.x, with another VAE, and at other noise levels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.checkpoints import vae_tensors
from modules.families.loader import read_model
from modules.generation.engine import generate
from modules.generation.made import GeneratedImage
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest, Hires, Init, Mask, Refiner
from modules.generation.shelf import Loaded, Shelf
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.header import ModelFileError
from modules.library.vaes import UnknownVae, VaeFile, VaeLibrary
from modules.settings.schema import Settings
from tests.tiny import FP32, save_tiny_of, tiny_parts

INIT, MASK = "1" * 64, "2" * 64


class Models:
    """What one run may take from."""

    def __init__(self, folder: Path):
        self.vaes = VaeLibrary([folder / "VAE"], [folder], folder / "cache.db")
        self.library = CheckpointLibrary([folder], folder / "cache.db")
        self.shelf = Shelf(
            load=lambda name: Loaded(self.loaded(name), self.identity(name)),
            identity=self.identity,
            picture=lambda id: Image.new("RGB" if id == INIT else "L", (64, 64), 200),
            vae_for=self.vae_for,
        )
        self._loaded: dict[str, Any] = {}

    def vae_for(self, checkpoint: Checkpoint, settings: Settings) -> VaeFile | None:
        chosen = self.vaes.choose(checkpoint, settings.sd_vae)
        return self.vaes.hashed(chosen) if chosen else None

    def identity(self, name: str) -> Checkpoint:
        return self.library.hashed(self.library.find(name))

    def loaded(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = read_model(self.identity(name).path, FP32)
        return self._loaded[name]

    def run(self, checkpoint: str, settings: dict[str, Any] | None = None, **changes: Any) -> GeneratedImage:
        base = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 7}
        wanted = GenerationRequest(**{**base, "checkpoint": checkpoint, **changes})
        chosen = Settings().with_overrides({"randn_source": "CPU", **(settings or {})})
        (made,) = generate(plan(wanted), self.shelf, chosen, lambda progress: None)
        return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd1", "sd2", "sdxl", "refiner"):
        save_tiny_of(folder / f"{kind}.safetensors", kind, tiny_parts(kind))  # type: ignore[arg-type]
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_tiny_of(folder / "vpred.safetensors", "sdxl", tiny_parts("sdxl"), **markers)
    save_tiny_of(folder / "inpaint.safetensors", "sdxl", tiny_parts("sdxl", in_channels=9))
    save_tiny_of(folder / "edit.safetensors", "sd1", tiny_parts("sd1", in_channels=8))
    (folder / "VAE").mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in vae_tensors(tiny_parts("sd1", seed=5).vae).items()}
    save_file(tensors, folder / "VAE" / "other.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "VAE" / "none.safetensors")
    yield Models(folder)


def differ(one: GeneratedImage, two: GeneratedImage) -> bool:
    return bool((np.asarray(one.image) != np.asarray(two.image)).any())


@pytest.mark.parametrize("checkpoint", ["sd2", "sdxl", "refiner", "vpred", "inpaint"])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "UniPC"])
def test_every_kind_makes_pictures(models: Models, checkpoint: str, sampler: str) -> None:
    made = models.run(checkpoint, sampler=sampler, negative_prompt="bad")
    assert np.asarray(made.image).std() > 1
    assert f"Model: {checkpoint}" in made.infotext


def test_hires_and_refiner(models: Models) -> None:
    plain = models.run("sdxl")
    made = models.run("sdxl", refiner=Refiner(checkpoint="refiner", switch_at=0.5))
    assert differ(plain, made)
    assert "Refiner: refiner [" in made.infotext and "Refiner switch at: 0.5" in made.infotext
    large = models.run("sdxl", hires=Hires(scale=2), steps=2)
    assert large.image.size == (128, 128)


def test_inpainting_and_editing(models: Models) -> None:
    init = Init(images=(INIT,), mask=Mask(image=MASK))
    assert models.run("inpaint", init=init).image.size == (64, 64)
    edited = models.run("edit", init=Init(images=(INIT,), image_cfg_scale=2.0))
    assert "Image CFG scale: 2.0" in edited.infotext


def test_sizes_and_corners_reach_sdxl(models: Models) -> None:
    assert differ(models.run("sdxl"), models.run("sdxl", {"sdxl_crop_top": 512}))
    assert differ(models.run("refiner"), models.run("refiner", {"sdxl_refiner_high_aesthetic_score": 1.0}))
    assert not differ(models.run("sd2"), models.run("sd2", {"sdxl_crop_top": 512}))


def test_another_vae_and_back(models: Models) -> None:
    own = models.run("sd1")
    other = models.run("sd1", {"sd_vae": "other.safetensors"})
    assert differ(own, other)
    found = models.vaes.hashed(models.vaes.find("other"))
    assert f"VAE hash: {found.shorthash}, VAE: other.safetensors" in other.infotext
    assert "VAE" not in own.infotext
    again = models.run("sd1")
    assert not differ(own, again) and again.infotext == own.infotext
    quiet = models.run("sd1", {"sd_vae": "other", "add_vae_name_to_info": False, "add_vae_hash_to_info": False})
    assert "VAE" not in quiet.infotext and not differ(other, quiet)


def test_vaes_that_cannot_be_used(models: Models) -> None:
    before = models.run("sd1")
    with pytest.raises(UnknownVae, match=r"there is no VAE 'othr'; nearest: other\.safetensors"):
        models.run("sd1", {"sd_vae": "othr"})
    with pytest.raises(ModelFileError, match=r"none\.safetensors: this is no VAE"):
        models.run("sd1", {"sd_vae": "none.safetensors"})
    assert not differ(before, models.run("sd1"))


def test_noise_levels(models: Models) -> None:
    plain = models.run("sdxl")
    stretched = models.run("sdxl", {"sd_noise_schedule": "Zero Terminal SNR"})
    rounded = models.run("sdxl", {"use_downcasted_alpha_bar": True})
    assert differ(plain, stretched) and differ(plain, rounded)
    assert "Noise Schedule: Zero Terminal SNR" in stretched.infotext
    assert "Downcast alphas_cumprod: True" in rounded.infotext
    assert not differ(plain, models.run("sdxl"))
