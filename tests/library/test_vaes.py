"""Which VAE a checkpoint gets: by the setting, by the user's choice beside it, by its name, or its own."""

import hashlib
import json
import logging
from pathlib import Path

import pytest

from modules.library.checkpoints import Checkpoint
from modules.library.hashes import Fingerprint
from modules.library.vaes import UnknownVae, VaeLibrary


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in (
        "VAE/mse.safetensors",
        "VAE/deep/anime.vae.pt",
        "VAE/model-special.ckpt",
        "VAE/notes.txt",
        "Stable-diffusion/model.safetensors",
        "Stable-diffusion/sub/other.safetensors",
        "Stable-diffusion/sub/other.vae.safetensors",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def library(models: Path) -> VaeLibrary:
    return VaeLibrary([models / "VAE"], [models / "Stable-diffusion"], models / "cache.db")


def checkpoint(models: Path, name: str) -> Checkpoint:
    path = models / "Stable-diffusion" / name
    return Checkpoint(path, name, Fingerprint.of(path.stat()))


def chosen(library: VaeLibrary, *arguments: object) -> str | None:
    found = library.choose(*arguments)  # type: ignore[arg-type]
    return found.name if found else None


def test_what_there_is(library: VaeLibrary) -> None:
    names = [file.name for file in library.list()]
    assert names == ["anime.vae.pt", "model-special.ckpt", "mse.safetensors", "other.vae.safetensors"]
    assert library.find("MSE").name == library.find("mse.safetensors").name == "mse.safetensors"
    with pytest.raises(UnknownVae, match=r"there is no VAE 'msee.safetensors'; nearest: mse\.safetensors"):
        library.find("msee.safetensors")


def test_a_new_file_is_found_without_a_refresh(library: VaeLibrary, models: Path) -> None:
    library.list()
    (models / "VAE" / "new.pt").write_bytes(b"new")
    assert library.find("new.pt").name == "new.pt"


def test_the_hash_is_that_of_the_file(library: VaeLibrary) -> None:
    hashed = library.hashed(library.find("anime.vae"))
    assert hashed.shorthash == hashlib.sha256(b"VAE/deep/anime.vae.pt").hexdigest()[:10]


def test_automatic_goes_by_the_name(library: VaeLibrary, models: Path) -> None:
    assert chosen(library, checkpoint(models, "model.safetensors"), "Automatic") == "model-special.ckpt"
    assert chosen(library, checkpoint(models, "sub/other.safetensors"), "Automatic") == "other.vae.safetensors"
    (models / "Stable-diffusion" / "alone.safetensors").write_bytes(b"alone")
    assert chosen(library, checkpoint(models, "alone.safetensors"), "Automatic") is None


def test_the_setting_wins_unless_it_must_not(library: VaeLibrary, models: Path) -> None:
    model = checkpoint(models, "model.safetensors")
    assert chosen(library, model, "mse.safetensors") == "mse.safetensors"
    assert chosen(library, model, "None") is None
    assert chosen(library, model, "mse.safetensors", False) == "model-special.ckpt"
    assert chosen(library, model, "None", False) == "model-special.ckpt"
    with pytest.raises(UnknownVae):
        library.choose(model, "missing.pt")
    always = models / "VAE" / "deep" / "anime.vae.pt"
    assert chosen(library, model, "None", True, always) == "anime.vae.pt"


def test_the_choice_beside_the_checkpoint(library: VaeLibrary, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = checkpoint(models, "model.safetensors")
    beside = models / "Stable-diffusion" / "model.json"
    beside.write_text(json.dumps({"vae": "mse.safetensors"}), "utf-8")
    assert chosen(library, model, "Automatic") == "mse.safetensors"
    assert chosen(library, model, "anime.vae.pt") == "anime.vae.pt"
    assert chosen(library, model, "anime.vae.pt", False) == "mse.safetensors"
    beside.write_text(json.dumps({"vae": "None"}), "utf-8")
    assert chosen(library, model, "Automatic") is None
    with caplog.at_level(logging.WARNING):
        beside.write_text(json.dumps({"vae": "gone.pt"}), "utf-8")
        assert chosen(library, model, "Automatic") == "model-special.ckpt"
        beside.write_text("{", "utf-8")
        assert chosen(library, model, "Automatic") == "model-special.ckpt"
    assert "'gone.pt', which model.safetensors asks for, is not there" in caplog.text
    assert "model.json beside the checkpoint cannot be read" in caplog.text


def test_a_replaced_file_has_another_fingerprint(models: Path, library: VaeLibrary) -> None:
    """By which those who keep loaded VAEs tell that theirs is of another file."""
    before = library.hashed(library.find("anime.vae.pt"))
    (models / "VAE" / "deep" / "anime.vae.pt").write_bytes(b"other bytes than before")
    after = library.hashed(library.find("anime.vae.pt"))
    assert before.sha256 != after.sha256 and before.fingerprint != after.fingerprint
