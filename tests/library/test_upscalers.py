import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.library.roots import UPSCALERS
from modules.library.upscalers import LATENT_UPSCALE_MODES, UnknownUpscaler, UpscalerLibrary


def library(folder: Path) -> UpscalerLibrary:
    return UpscalerLibrary({kind: (folder / kind,) for kind in UPSCALERS})


def test_the_plain_ones_are_always_there(tmp_path: Path, golden: Path):
    lists = json.loads((golden.parent / "facts" / "lists.json").read_text())
    ours = [(upscaler.name, upscaler.scale) for upscaler in library(tmp_path).list()]
    assert ours == [(row["name"], row["scale"]) for row in lists["upscalers"][:3]]
    assert [row["name"] for row in lists["latent-upscale-modes"]] == list(LATENT_UPSCALE_MODES)


def test_files_go_by_a1111s_names_and_say_why_they_cannot_be_used(tmp_path: Path):
    for kind in ("ESRGAN/deep", "RealESRGAN", "SwinIR"):
        (tmp_path / kind).mkdir(parents=True)
    zipped = b"PK\x03\x04" + bytes(300)
    (tmp_path / "ESRGAN" / "deep" / "2x-Sharp.pth").write_bytes(zipped)
    (tmp_path / "ESRGAN" / "page.pth").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "ESRGAN" / "empty.pth").write_bytes(b"")
    (tmp_path / "ESRGAN" / "notes.txt").write_bytes(b"")
    (tmp_path / "RealESRGAN" / "RealESRGAN_x4plus_anime_6B.pth").write_bytes(zipped)
    (tmp_path / "SwinIR" / "SwinIR_4x.pth").write_bytes(zipped)
    save_file({"a": torch.zeros(1)}, tmp_path / "ESRGAN" / "other.safetensors")
    found = {upscaler.name: upscaler for upscaler in library(tmp_path).list()[3:]}
    assert list(found) == ["2x-Sharp", "empty", "other", "page", "R-ESRGAN 4x+ Anime6B", "SwinIR 4x"]
    assert found["2x-Sharp"].scale == 2 and found["2x-Sharp"].problem is None
    assert found["R-ESRGAN 4x+ Anime6B"].scale == 4
    assert "HTML page" in found["page"].problem and "empty" in found["empty"].problem
    assert "SwinIR networks are not supported" in found["SwinIR 4x"].problem
    assert "architecture is not supported" in found["other"].problem
    assert library(tmp_path).find("2X-sharp") == found["2x-Sharp"]
    with pytest.raises(UnknownUpscaler, match="'SwinIR 4x' cannot be used: SwinIR networks"):
        library(tmp_path).find("SwinIR 4x")


def test_unknown_names_get_a_hint(tmp_path: Path):
    with pytest.raises(UnknownUpscaler, match="no upscaler 'Lancsos'; did you mean 'Lanczos'"):
        library(tmp_path).find("Lancsos")
