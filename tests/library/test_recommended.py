"""Advice for checkpoints of every kind, by what is in the file and by what it is called."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.library.checkpoints import Checkpoint
from modules.library.hashes import Fingerprint
from modules.library.recommended import Recommended, recommended

UNET = "model.diffusion_model.input_blocks.0.0.weight"
MARKS = {
    "sd1": ("cond_stage_model.transformer.text_model.final_layer_norm.weight",),
    "sd2": ("cond_stage_model.model.ln_final.weight",),
    "sdxl": ("conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.ln_final.weight"),
    "refiner": ("conditioner.embedders.0.model.ln_final.weight",),
}


def advice(folder: Path, name: str, kind: str, metadata: dict[str, str] | None = None, *more: str) -> Recommended:
    path = folder / f"{name}.safetensors"
    save_file({mark: torch.zeros(1) for mark in (UNET, *MARKS[kind], *more)}, path, metadata)
    found = recommended(Checkpoint(path, path.name, Fingerprint(0, 0, 0)))
    assert found.sampler in {info.name for info in SAMPLER_INFOS}
    assert found.schedule in {info.label for info in SCHEDULE_INFOS}
    return found


@pytest.mark.parametrize(
    ("kind", "family", "size"),
    [("sd1", "SD 1.x", 512), ("sd2", "SD 2.x", 512), ("sdxl", "SDXL", 1024), ("refiner", "SDXL refiner", 1024)],
)
def test_families(tmp_path: Path, kind: str, family: str, size: int) -> None:
    found = advice(tmp_path, "model", kind)
    assert (found.family, found.width, found.height, found.steps, found.cfg_scale) == (family, size, size, 20, 7)


@pytest.mark.parametrize(
    ("name", "kind", "size", "sampler", "schedule", "steps", "cfg_scale"),
    [
        ("sdxl_lightning_8step", "sdxl", 1024, "Euler", "SGM Uniform", 8, 1),
        ("dreamshaperXL_lightningDPMSDE", "sdxl", 1024, "Euler", "SGM Uniform", 4, 1),
        ("sd_xl_turbo_1.0_fp16", "sdxl", 512, "Euler a", "Automatic", 4, 1),
        ("dreamshaperXL_v21TurboDPMSDE", "sdxl", 1024, "Euler a", "Automatic", 4, 1),
        ("dreamshaper_8LCM", "sd1", 512, "LCM", "Automatic", 8, 1.5),
        ("dreamshaper_8-lcm", "sd1", 512, "LCM", "Automatic", 8, 1.5),
        ("Realistic_Vision_Hyper-SD_4steps", "sd1", 512, "Euler", "SGM Uniform", 4, 1),
        ("x-dmd2", "sdxl", 1024, "LCM", "Automatic", 4, 1),
        ("hyperrealism", "sd1", 512, "DPM++ 2M", "Automatic", 20, 7),
    ],
)
def test_few_steps(
    tmp_path: Path, name: str, kind: str, size: int, sampler: str, schedule: str, steps: int, cfg_scale: float
) -> None:
    found = advice(tmp_path, name, kind)
    assert (found.width, found.sampler, found.schedule, found.steps, found.cfg_scale) == (
        size,
        sampler,
        schedule,
        steps,
        cfg_scale,
    )


def test_metadata_and_markers(tmp_path: Path) -> None:
    stated = {"modelspec.resolution": "768x1024", "modelspec.title": "Quick LCM 6 steps"}
    found = advice(tmp_path, "plain", "sd1", stated)
    assert (found.width, found.height, found.sampler, found.steps) == (768, 1024, "LCM", 6)
    assert advice(tmp_path, "v", "sd2", {"modelspec.prediction_type": "v"}).width == 768
    found = advice(tmp_path, "noob", "sdxl", None, "v_pred", "ztsnr")
    assert (found.sampler, found.cfg_scale) == ("Euler", 5)


def test_what_has_no_header(tmp_path: Path) -> None:
    def of(name: str) -> Recommended:
        return recommended(Checkpoint(tmp_path / name, name, Fingerprint(0, 0, 0)))

    assert of("v2-1_768-ema-pruned.ckpt").width == 768
    assert of("sd_xl_base_1.0.ckpt").family == "SDXL"
    assert of("anything.ckpt").family is None
    folder = tmp_path / "folder"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", "utf-8")
    (folder / "unet" / "config.json").write_text(json.dumps({"addition_embed_type": "text_time"}), "utf-8")
    assert of("folder").family == "SDXL refiner"
    (folder / "text_encoder").mkdir()
    assert of("folder").family == "SDXL"
