import os
from argparse import Namespace
from pathlib import Path

from modules.library.roots import Root, as_roots, roots_from
from modules.runtime.flags import parse
from modules.runtime.paths import Paths


def folders(tmp_path: Path, *flags: str) -> dict[str, list[Path]]:
    paths = Paths(tmp_path / "program", tmp_path, tmp_path / "models", tmp_path / "d", tmp_path / "c", tmp_path / "j")
    return {kind: [root.path for root in roots] for kind, roots in roots_from(paths, parse(flags)).items()}


def test_folders_are_a1111s(tmp_path: Path):
    usual = folders(tmp_path)
    models, shipped = tmp_path / "models", tmp_path / "program/models"
    assert usual["checkpoint"] == [models / "Stable-diffusion", shipped / "Stable-diffusion"]
    assert usual["lora"] == [models / "Lora", models / "LyCORIS", shipped / "Lora"]
    assert usual["embedding"] == [tmp_path / "embeddings", models / "embeddings", shipped / "embeddings"]
    assert usual["hypernetwork"] == [models / "hypernetworks"]
    assert usual["upscaler"][:2] == [models / "ESRGAN", models / "RealESRGAN"]
    assert usual["controlnet"] == [models / "ControlNet"]


def test_flags_add_folders_or_replace_them(tmp_path: Path):
    for add, kind in (("--ckpt-dir", "checkpoint"), ("--vae-dir", "vae"), ("--controlnet-dir", "controlnet"),
                      ("--text-encoder-dir", "text_encoder")):  # fmt: skip
        assert folders(tmp_path, add, "/x")[kind] == [*folders(tmp_path)[kind], Path("/x")]
    mine, shipped = Path(os.path.abspath("mine")), tmp_path / "program/models"
    assert folders(tmp_path, "--hypernetwork-dir", "mine")["hypernetwork"] == [mine]
    assert folders(tmp_path, "--embeddings-dir", "mine")["embedding"] == [mine, shipped / "embeddings"]
    assert folders(tmp_path, "--lora-dir", "/x")["lora"] == [Path("/x"), tmp_path / "models/LyCORIS", shipped / "Lora"]
    assert Path("/x") in folders(tmp_path, "--esrgan-models-path", "/x")["upscaler"]
    assert tmp_path / "models/ESRGAN" not in folders(tmp_path, "--esrgan-models-path", "/x")["upscaler"]


def test_folders_are_shown_without_what_lies_above(tmp_path: Path):
    root = Root(tmp_path, "ComfyUI", names={"0f1e": "Great model"})
    assert root.folder_of(tmp_path / "x.safetensors") == "ComfyUI"
    assert root.folder_of(tmp_path / "a" / "b" / "x.safetensors") == "ComfyUI/a/b"
    assert root.inside(tmp_path / "0f1e" / "x.safetensors") == "Great model/x.safetensors"
    assert Root(tmp_path).folder_of(tmp_path / "x.safetensors") == ""


def test_a_folder_given_twice_is_one(tmp_path: Path):
    assert as_roots([tmp_path, Root(tmp_path, "x"), tmp_path / "a" / ".."]) == (Root(tmp_path),)


def test_the_labels_of_other_folders_are_their_names(tmp_path: Path):
    paths = Paths(tmp_path, tmp_path, tmp_path / "models", tmp_path / "d", tmp_path / "c", tmp_path / "j")
    flags = Namespace(ckpt_dir="/big/disk/mine", esrgan_models_path=None)
    roots = roots_from(paths, flags)
    assert [root.label for root in roots["checkpoint"]] == ["", "mine"]
    assert [root.label for root in roots["upscaler"]][:2] == ["ESRGAN", "RealESRGAN"]
