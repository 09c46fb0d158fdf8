"""Model folders of other programs, as those lay them out."""

import json
import logging
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from modules.library.cache import FileCache
from modules.library.catalogue import Catalogue
from modules.library.components import Looker
from modules.library.trees import Tree, hub_folder, trees_at, trees_from
from tests.jobs.scene import make_app
from tests.library.test_facts import FIRST, save

XL = {**FIRST, "conditioner.embedders.1.model.ln_final.weight": (1,)}
LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}
VAE = {"decoder.conv_in.weight": (1, 4, 3, 3), "encoder.conv_in.weight": (1, 3, 3, 3)}
CONTROL = {"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768)}
TEXT = {"text_model.encoder.layers.0.x.weight": (1,), "text_model.embeddings.token_embedding.weight": (2, 768)}
FLUX = {"double_blocks.0.img_attn.qkv.weight": (1, 1)}
RRDB = {"conv_first.weight": (1, 3), "conv_last.weight": (1, 1), "body.0.rdb1.conv1.weight": (1, 1),
        "conv_up1.weight": (1, 1), "conv_up2.weight": (1, 1)}  # fmt: skip
EMBEDDING = {"emb_params": (2, 768)}


@pytest.fixture
def looker(tmp_path: Path) -> Looker:
    return Looker(FileCache(tmp_path / "looked.db"))


def found(catalogue: Catalogue) -> dict[tuple[str, str], str]:
    """(kind, name): folder, without what our own folders hold."""
    return {(one.kind, one.name): one.folder for one in catalogue.records() if one.name != "plain"}


def listed(tmp_path: Path, *trees: Path | str) -> dict[tuple[str, str], str]:
    flags = [word for tree in trees for word in ("--model-tree", str(tree))]
    app = make_app(tmp_path / "easel", None, *flags)
    try:
        assert all(one.problem is None for one in app.models.records())
        return found(app.models)
    finally:
        app.store.close()


def test_a1111_and_forge(tmp_path: Path, looker: Looker):
    home = tmp_path / "stable-diffusion-webui"
    save(home / "models/Stable-diffusion/sub/xl.safetensors", XL)
    save(home / "models/Lora/style.safetensors", LORA)
    save(home / "models/VAE/v.safetensors", VAE)
    save(home / "embeddings/e.safetensors", EMBEDDING)
    save(home / "models/ESRGAN/4x.safetensors", RRDB)
    save(home / "extensions/sd-webui-controlnet/models/canny.safetensors", CONTROL)
    assert listed(tmp_path, home) == {
        ("checkpoint", "xl"): "stable-diffusion-webui/sub",
        ("lora", "style"): "stable-diffusion-webui",
        ("vae", "v"): "stable-diffusion-webui",
        ("embedding", "e"): "stable-diffusion-webui",
        ("upscaler", "4x"): "stable-diffusion-webui/ESRGAN",
        ("controlnet", "canny"): "stable-diffusion-webui",
    }
    assert trees_at(home, looker.kinds)[0].program == "A1111"
    save(home / "models/text_encoder/clip.safetensors", TEXT)
    assert trees_at(home, looker.kinds)[0].program == "Forge"
    assert ("text_encoder", "clip") in listed(tmp_path, home)
    assert trees_at(home / "models", looker.kinds)[0].program == "A1111's models"


def test_comfyui(tmp_path: Path):
    models = tmp_path / "ComfyUI" / "models"
    save(models / "checkpoints/xl.safetensors", XL)
    save(models / "loras/people/style.safetensors", LORA)
    save(models / "vae/v.safetensors", VAE)
    save(models / "diffusion_models/flux.safetensors", FLUX)
    save(models / "unet/flux2.safetensors", FLUX)
    save(models / "clip/l.safetensors", TEXT)
    save(models / "controlnet/canny.safetensors", CONTROL)
    save(models / "upscale_models/4x.safetensors", RRDB)
    save(models / "embeddings/e.safetensors", EMBEDDING)
    assert listed(tmp_path, tmp_path / "ComfyUI") == {
        ("checkpoint", "xl"): "ComfyUI",
        ("lora", "style"): "ComfyUI/people",
        ("vae", "v"): "ComfyUI",
        ("unet", "flux"): "ComfyUI",
        ("unet", "flux2"): "ComfyUI",
        ("text_encoder", "l"): "ComfyUI",
        ("controlnet", "canny"): "ComfyUI",
        ("upscaler", "4x"): "ComfyUI/ESRGAN",
        ("embedding", "e"): "ComfyUI",
    }


def test_comfyuis_extra_paths(tmp_path: Path, looker: Looker, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "webui/models/Stable-diffusion/a.safetensors", XL)
    save(tmp_path / "webui/models/Lora/l.safetensors", LORA)
    save(tmp_path / "webui/models/LyCORIS/m.safetensors", LORA)
    save(tmp_path / "big/ck/b.safetensors", XL)
    monkeypatch.setenv("BIG", str(tmp_path / "big"))
    file = tmp_path / "comfy" / "extra_model_paths.yaml"
    file.parent.mkdir()
    file.write_text(
        """
a111:
    base_path: ../webui/
    checkpoints: models/Stable-diffusion
    loras: |
        models/Lora
        models/LyCORIS
    custom_nodes: x
mine:
    base_path: $BIG
    is_default: true
    checkpoints: ck/
broken: 5
""",
        "utf-8",
    )
    assert [tree.label for tree in trees_at(file, looker.kinds)] == ["mine", "a111"]
    assert listed(tmp_path, file) == listed(tmp_path, file.parent) == {
        ("checkpoint", "b"): "mine",
        ("checkpoint", "a"): "a111",
        ("lora", "l"): "a111",
        ("lora", "m"): "a111",
    }  # fmt: skip
    for content in ("", "- a", "a: [", "!!python/object/apply:os.system ['touch x']", "a: &a [*a]", "[" * 5000):
        file.write_text(content)
        assert all(not tree.roots for tree in trees_at(file, looker.kinds))


def test_stability_matrix(tmp_path: Path):
    models = tmp_path / "StabilityMatrix" / "Data" / "Models"
    save(models / "StableDiffusion/xl.safetensors", XL)
    save(models / "Lora/style.safetensors", LORA)
    save(models / "DiffusionModels/flux.safetensors", FLUX)
    save(models / "Embeddings/e.safetensors", EMBEDDING)
    expected = {("checkpoint", "xl"), ("lora", "style"), ("unet", "flux"), ("embedding", "e")}
    for place in (tmp_path / "StabilityMatrix", models.parent, models):
        assert set(listed(tmp_path, place)) == expected


def test_invokeai_by_folders(tmp_path: Path):
    home = tmp_path / "invokeai"
    save(home / "models/sdxl/main/xl.safetensors", XL)
    save(home / "models/sd-1/lora/style.safetensors", LORA)
    save(home / "models/sd-1/embedding/odd.safetensors", {"anything": (2, 768)})
    save(home / "models/any/clip_vision/other.safetensors", {"a.b": (1,)})
    (home / "invokeai.yaml").touch()
    assert listed(tmp_path, home) == {
        ("checkpoint", "xl"): "invokeai/sdxl/main",
        ("lora", "style"): "invokeai/sd-1/lora",
        ("embedding", "odd"): "invokeai/sd-1/embedding",
    }


def invoke_database(home: Path, rows: list[dict[str, str]]) -> None:
    (home / "databases").mkdir(parents=True)
    database = sqlite3.connect(home / "databases" / "invokeai.db")
    database.execute("CREATE TABLE models (id TEXT PRIMARY KEY, config TEXT)")
    database.executemany("INSERT INTO models VALUES (?, ?)", [(str(n), json.dumps(row)) for n, row in enumerate(rows)])
    database.commit()
    database.close()


def test_invokeais_database_has_the_names(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    home = tmp_path / "invokeai"
    save(home / "models/0f1e/xl.safetensors", XL)
    save(home / "models/77aa/style.safetensors", LORA)
    save(home / "models/dddd/new.safetensors", LORA)
    invoke_database(
        home,
        [{"path": "0f1e/xl.safetensors", "name": "Juggernaut / XL", "type": "main", "base": "sdxl"},
         {"path": "77aa/style.safetensors", "name": "Style", "type": "lora", "base": "sd-1"},
         {"path": "/elsewhere/x.safetensors", "name": "Far", "type": "main", "base": "sd-1"}],
    )  # fmt: skip
    assert listed(tmp_path, home) == {
        ("checkpoint", "xl"): "invokeai/Juggernaut _ XL",
        ("lora", "style"): "invokeai/Style",
        ("lora", "new"): "invokeai/dddd",
    }
    assert "1 models of InvokeAI lie outside" in caplog.text
    (home / "databases" / "invokeai.db").write_bytes(b"no database")
    assert ("checkpoint", "xl") in listed(tmp_path, home)


def test_a_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = tmp_path / "hf" / "hub"

    def keep(repository: str, revision: str, name: str, shapes: dict[str, tuple[int, ...]]) -> Path:
        home = hub / f"models--{repository.replace('/', '--')}"
        blob = save(home / "blobs" / f"{abs(hash((revision, name))):x}.safetensors", shapes)
        blob = blob.rename(blob.with_suffix(""))
        link = home / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(revision)
        return link

    keep("org/old", "aaaa", "gone.safetensors", XL)
    keep("org/old", "bbbb", "here.safetensors", XL)
    keep("me/style", "cccc", "pytorch_lora_weights.safetensors", LORA)
    keep("stabilityai/sdxl-vae", "dddd", "diffusion_pytorch_model.safetensors", VAE)
    keep("some/llm", "eeee", "weights.safetensors", {"h.0.attn.weight": (1, 1)})
    for part in ("unet", "vae", "text_encoder"):
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        keep("a/sd-diffusers", "ffff", f"{part}/{stem}.safetensors", VAE)
    index = hub / "models--a--sd-diffusers" / "snapshots" / "ffff" / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    expected = {
        ("checkpoint", "here"): "Hugging Face/org/old",
        ("checkpoint", "sd-diffusers"): "Hugging Face/a",
        ("lora", "pytorch_lora_weights"): "Hugging Face/me/style",
        ("vae", "diffusion_pytorch_model"): "Hugging Face/stabilityai/sdxl-vae",
    }
    assert listed(tmp_path, "huggingface") == expected
    assert listed(tmp_path, hub.parent) == expected  # HF_HOME itself
    (hub / "models--org--old" / "refs" / "main").unlink()
    assert ("checkpoint", "here") in listed(tmp_path, hub) or ("checkpoint", "gone") in listed(tmp_path, hub)
    assert listed(tmp_path) == {}  # only when asked
    one = {("checkpoint", "ffff"): "snapshots"}
    assert listed(tmp_path, index.parent) == one  # one model's folder


def test_where_the_cache_is():
    assert hub_folder({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_folder({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_folder({}) == Path("~/.cache/huggingface/hub").expanduser()


def test_any_folder_is_told_apart_by_headers(tmp_path: Path, looker: Looker):
    heap = tmp_path / "downloads"
    save(heap / "a.safetensors", XL)
    save(heap / "b.safetensors", LORA)
    save(heap / "sub" / "c.safetensors", CONTROL)
    save(heap / "other.safetensors", {"a.b": (1,)})
    (heap / "setup.bin").write_bytes(b"MZ" + bytes(100))
    (heap / "movie.part").write_bytes(b"x")
    assert listed(tmp_path, heap) == {
        ("checkpoint", "a"): "downloads",
        ("lora", "b"): "downloads",
        ("controlnet", "c"): "downloads/sub",
    }


def test_names_of_two_trees_that_collide_stay_tellable_apart(tmp_path: Path):
    for home, seed in (("one", XL), ("two", {**XL, "v_pred": ()})):
        save(tmp_path / home / "models/checkpoints/same.safetensors", seed)
        save(tmp_path / home / "models/loras/same.safetensors", LORA)
        save(tmp_path / home / "models/vae/same.safetensors", VAE)
        save(tmp_path / home / "models/upscale_models/same.safetensors", RRDB)
    app = make_app(
        tmp_path / "easel", None, "--model-tree", str(tmp_path / "one"), "--model-tree", str(tmp_path / "two")
    )
    try:
        values = {kind: [one.value for one in app.models.records(kind) if one.name == "same"]
                  for kind in ("checkpoint", "vae", "lora", "upscaler")}  # fmt: skip
        assert sorted(values["checkpoint"]) == ["same.safetensors", "two/same.safetensors"]
        assert sorted(values["vae"]) == ["same.safetensors", "two/same.safetensors"]
        assert sorted(values["lora"]) == ["one/same", "same"]
        assert len(set(values["upscaler"])) == 2
        for record in app.models.records("checkpoint"):
            assert str(app.library.find(record.value).path) == record.path
        for record in app.models.records("lora"):
            assert app.networks.find("lora", record.value).file == record.path  # type: ignore[union-attr]
        for record in app.models.records("vae"):
            assert str(app.vaes.find(record.value).path) == record.path
        for record in app.models.records("upscaler"):
            assert str(app.upscalers.find(record.value).path) == record.path
    finally:
        app.store.close()


def test_two_trees_of_one_name_and_none_that_is_missing(
    tmp_path: Path, looker: Looker, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    for home in ("a", "b"):
        (tmp_path / home / "ComfyUI" / "models" / "checkpoints").mkdir(parents=True)
    named = [str(tmp_path / home / "ComfyUI") for home in ("a", "b", "missing")]
    trees: list[Tree] = trees_from(named, {}, looker.kinds)
    assert [tree.label for tree in trees] == ["ComfyUI", "ComfyUI 2"]
    assert trees[1].roots["checkpoint"][0].label == "ComfyUI 2"
    assert "models of ComfyUI 2: ComfyUI, folders: 1 of checkpoint" in caplog.text
    assert "there is no folder" in caplog.text and "missing" in caplog.text


def test_links_into_trees_are_followed_and_nothing_is_copied(tmp_path: Path):
    home = tmp_path / "ComfyUI"
    model = save(home / "models/checkpoints/xl.safetensors", XL)
    folder = tmp_path / "easel" / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    (folder / "linked.safetensors").symlink_to(model)
    before = sorted(path for path in home.rglob("*"))
    assert ("checkpoint", "linked") in listed(tmp_path, home)
    assert sorted(path for path in home.rglob("*")) == before
    app = make_app(tmp_path / "easel")
    try:
        (linked,) = (one for one in app.models.records("checkpoint") if one.name == "linked")
        assert "leads out" in str(linked.problem)
    finally:
        app.store.close()
    shutil.rmtree(home)


def test_a_setting_names_trees_too_but_not_over_http(tmp_path: Path):
    save(tmp_path / "ComfyUI/models/checkpoints/xl.safetensors", XL)
    (tmp_path / "easel").mkdir()
    (tmp_path / "easel" / "config.json").write_text(json.dumps({"model_trees": [str(tmp_path / "ComfyUI")]}))
    assert ("checkpoint", "xl") in listed(tmp_path)
    from modules.settings.schema import SettingError, refuse_protected

    with pytest.raises(SettingError):
        refuse_protected({"model_trees": ["/"]})
