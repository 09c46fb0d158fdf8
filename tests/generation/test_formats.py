"""Whole runs of UNets in 8 bits, and of files that hold only a UNet: what is said of them, and read back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from bench.checkpoints import original_tensors, vae_tensors
from modules.families import ldm
from modules.families.holder import ModelHolder, Wish
from modules.generation.infotext import parse
from modules.generation.made import GeneratedImage
from modules.generation.reading import to_request_fields
from tests.generation.test_families import Models
from tests.tiny import FP32, HEADS, save_tiny_of, tiny_parts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GeneratedImage]:
    """One picture of a checkpoint, loaded as the wish says."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_of(folder / "whole.safetensors", "sd1", tiny_parts("sd1"))
    unet = {name: t for name, t in original_tensors("sd1", tiny_parts("sd1")).items() if name.startswith(ldm.UNET)}
    save_file(
        {name.removeprefix(ldm.UNET): t.contiguous() for name, t in unet.items()}, folder / "only.safetensors", HEADS
    )
    (folder / "VAE").mkdir()
    other = {name: tensor.contiguous() for name, tensor in vae_tensors(tiny_parts("sd1", seed=5).vae).items()}
    save_file(other, folder / "VAE" / "other.safetensors")
    models = Models(folder)
    holder = ModelHolder(FP32, lenders=lambda: [folder / "whole.safetensors"])

    def running(checkpoint: str, wish: Wish = Wish(), **changes: Any) -> GeneratedImage:  # noqa: B008 - frozen
        models.loaded = lambda name: holder.get(models.identity(name), wish=wish)  # type: ignore[method-assign]
        return models.run(checkpoint, **changes)

    return running


def psnr(one: GeneratedImage, other: GeneratedImage) -> float:
    error = np.asarray(one.image).astype(float) - np.asarray(other.image).astype(float)
    return float(10 * np.log10(255**2 / max(np.mean(error**2), 1e-30)))


def test_a_run_in_8_bits_is_close_and_says_so(run: Callable[..., GeneratedImage]) -> None:
    plain = run("whole")
    settings = {"fp8_storage": "Enable", "cache_fp16_weight": True}
    made = run("whole", Wish("Enable", fp8_full=True), settings=settings)
    assert 20 < psnr(made, plain) < 60
    assert "FP8 weight: Enable, Cache FP16 weight for LoRA: True, RNG: CPU, Version:" in made.infotext
    assert "FP8" not in plain.infotext
    read = to_request_fields(parse(made.infotext))
    assert {key: read.fields["overrides"][key] for key in settings} == settings
    assert not read.unmapped
    assert to_request_fields(parse(plain.infotext)).fields["overrides"]["fp8_storage"] == "Disable"


def test_a_setting_without_effect_is_not_told(run: Callable[..., GeneratedImage]) -> None:
    made = run("whole", Wish("Enable for SDXL"), settings={"fp8_storage": "Enable for SDXL"})
    assert "FP8" not in made.infotext


def test_what_a_unet_took_from_elsewhere_is_told(run: Callable[..., GeneratedImage]) -> None:
    whole, made = run("whole"), run("only")
    assert psnr(made, whole) > 200
    assert "Text encoder from: whole, VAE from: whole" in made.infotext
    assert made.warnings == ("only is only a UNet: text encoder from whole, vae from whole",)
    other = run("only", settings={"sd_vae": "other.safetensors"})
    assert "Text encoder from: whole" in other.infotext and "VAE from" not in other.infotext
    assert "VAE: other.safetensors" in other.infotext
    assert "Text encoder from" not in whole.infotext and not whole.warnings
