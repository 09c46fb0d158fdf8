"""Folders of models are gone through alike, whatever kind of model lies in them."""

import os
from pathlib import Path

import pytest

from modules.library.vaes import VaeLibrary
from modules.library.walking import Bounds, natural, places


def test_order_links_and_loops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for path in (root / "v10.pt", root / "v2.pt", root / "note.txt", root / "b" / "x.PT ", elsewhere / "far.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.symlink(elsewhere, root / "linked")
    os.symlink(root, elsewhere / "back")
    bounds = Bounds([root, elsewhere])
    found = [[entry.name for entry in place.files] for place in places(root, (".pt",), bounds=bounds)]
    assert found == [["v2.pt", "v10.pt"], ["x.PT "], ["far.pt"]]
    found = [[entry.name for entry in place.files] for place in places(root, (".pt",))]
    assert found == [["v2.pt", "v10.pt"], ["x.PT "]]
    assert "linked is a link that leads out of the folders of models; start with --model-tree" in caplog.text
    assert list(places(tmp_path / "missing", (".pt",))) == []


def test_files_that_are_links_to_elsewhere_are_marked(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "far.pt").touch()
    os.symlink(tmp_path / "far.pt", tmp_path / "root" / "a.pt")
    os.symlink("b.pt", tmp_path / "root" / "c.pt")
    for name in ("b.pt", ".hidden.pt", "._b.pt", "b.pt.part"):
        (tmp_path / "root" / name).touch()
    (place,) = places(tmp_path / "root", (".pt",))
    assert [entry.name for entry in place.files] == ["a.pt", "b.pt", "c.pt"] and place.outside == {"a.pt"}


def test_a_folder_may_be_a_model_but_not_the_first(tmp_path: Path) -> None:
    (tmp_path / "whole" / "unet").mkdir(parents=True)
    for path in (tmp_path / "index", tmp_path / "whole" / "index", tmp_path / "whole" / "unet" / "x.pt"):
        path.touch()
    found = list(places(tmp_path, (".pt",), lambda entries: any(entry.name == "index" for entry in entries)))
    assert [(Path(place.path).name, place.is_whole) for place in found[1:]] == [("whole", True)]
    assert not found[0].is_whole


def test_people_count() -> None:
    assert sorted(["v10", "V2", "v1"], key=natural) == ["v1", "V2", "v10"]


def test_vaes_are_found_through_links_as_all_others(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "VAE").mkdir()
    (tmp_path / "disk" / "sharp.safetensors").write_bytes(b"x")
    os.symlink(tmp_path / "disk", tmp_path / "VAE" / "more")
    assert VaeLibrary([tmp_path / "VAE"], [], tmp_path / "c.db").list() == ()
    both = VaeLibrary([tmp_path / "VAE", tmp_path / "disk"], [], tmp_path / "c.db")
    assert [vae.name for vae in both.list()] == ["sharp.safetensors"]
