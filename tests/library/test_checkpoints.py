import hashlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from modules.library.cache import FileCache
from modules.library.checkpoints import Checkpoint, CheckpointLibrary, UnknownCheckpoint
from modules.library.hashes import digests_of, legacy_hash
from modules.library.header import ModelFileError
from tests.ending import ends

HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def model(path: Path, weights: bytes = b"1234") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + weights)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def library(folder: Path, tmp_path: Path) -> CheckpointLibrary:
    folder.mkdir()
    return CheckpointLibrary([folder], tmp_path / "cache" / "models.db")


def names(library: CheckpointLibrary) -> list[str]:
    return [checkpoint.name for checkpoint in library.refresh()]


def problem(library: CheckpointLibrary, name: str) -> str | None:
    return next(checkpoint.problem for checkpoint in library.refresh() if checkpoint.name == name)


def test_names_as_measured(golden: Path, tmp_path: Path):
    facts = json.loads((golden / "hashes.json").read_text())["checkpoint"]
    library = CheckpointLibrary([golden / "models"], tmp_path / "models.db")
    plain = library.find("tiny-sd1.safetensors")
    assert plain.title == "tiny-sd1.safetensors" and plain.config == golden / "models" / "tiny-sd1.yaml"
    checkpoint = library.hashed(plain)
    for key in ("sha256", "shorthash", "title", "short_title", "name"):
        assert getattr(checkpoint, key) == facts[key], key
    assert legacy_hash(checkpoint.path) == facts["legacy_hash"]
    for text in facts["ids"]:
        assert library.find(text) == checkpoint, text
        assert library.find(text.upper()) == checkpoint, text
    assert checkpoint in library.list()


def test_folders_below_and_the_first_of_a_name(folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    model(folder / "x.safetensors", b"AAAA")
    model(other / "x.safetensors", b"BBBB")
    model(other / "sub" / "y.safetensors")
    (other / "sub" / "y.yaml").write_text("model: {}")
    library = CheckpointLibrary([folder, other, tmp_path / "missing"], tmp_path / "models.db")
    assert names(library) == ["sub/y.safetensors", "x.safetensors"]
    assert library.find("x").path == folder / "x.safetensors"
    y = library.find("y")
    assert (y.model_name, y.flat_name, y.short_title) == ("y", "sub_y", "y")
    assert y.config == other / "sub" / "y.yaml" and library.find("x").config is None
    assert library.find("sub_y") == library.find("sub/y.safetensors") == y


def test_finding(library: CheckpointLibrary, folder: Path):
    for number, name in enumerate(["dream", "dreamier", "night v2", "night v10"]):
        model(folder / f"{name}.safetensors", b"%4d" % number)
    assert names(library)[2:] == ["night v2.safetensors", "night v10.safetensors"]
    assert library.find("dream").model_name == "dream"
    assert library.find("DREAMI").model_name == "dreamier"
    with pytest.raises(UnknownCheckpoint, match="2 checkpoints go by 'night'; nearest: night v2"):
        library.find("night")
    with pytest.raises(UnknownCheckpoint, match="no checkpoint 'dreem'; nearest: dream"):
        library.find("dreem")
    with pytest.raises(UnknownCheckpoint):
        library.find("  ")
    hashed = library.hashed(library.find("dream"))
    assert library.find(f"renamed [{hashed.shorthash}]") == hashed
    assert library.find("dreamier [0123456789]").model_name == "dreamier"
    assert library.find(hashed.sha256 or "") == hashed


def test_an_empty_library_says_so(library: CheckpointLibrary):
    with pytest.raises(UnknownCheckpoint, match="there is none at all"):
        library.find("x")


def test_broken_files_are_listed_with_the_reason(library: CheckpointLibrary, folder: Path):
    model(folder / "good.safetensors")
    model(folder / "cut.safetensors", b"12")
    (folder / "empty.SafeTensors").write_bytes(b"")
    (folder / "page.SAFETENSORS").write_bytes(b"<!DOCTYPE html>" + b" " * 100)
    (folder / "old.ckpt").write_bytes(b"PK\3\4")
    (folder / "old.ckpt ").write_bytes(b"\x80\x02}")
    (folder / "x.safetensors.ckpt").write_bytes(b"\x80\x02}")
    (folder / "llm.gguf").write_bytes(b"GGUF")
    (folder / "notes.txt").write_text("not a model")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "nowhere.safetensors").symlink_to(folder / "gone")
    found = {checkpoint.name: checkpoint.problem for checkpoint in library.refresh()}
    assert found.pop("good.safetensors") is None
    for name, word in {
        "cut.safetensors": "incomplete",
        "empty.SafeTensors": "empty",
        "page.SAFETENSORS": "HTML page",
        "old.ckpt": "damaged zip archive",
        "old.ckpt ": "Python pickle",
        "x.safetensors.ckpt": "Python pickle",
        "llm.gguf": "incomplete",
        "pipe.safetensors": "named pipe",
        "folder.safetensors": "folder",
        "nowhere.safetensors": "leads nowhere",
    }.items():
        assert word in str(found.pop(name)), name
    assert found == {}
    assert [checkpoint.name for checkpoint in library.usable()] == ["good.safetensors"]
    with pytest.raises(ModelFileError, match="cut.safetensors: incomplete"):
        library.find("cut.safetensors")


def test_pytorchs_archives_are_listed_and_vaes_are_not(library: CheckpointLibrary, folder: Path):
    for name in ("x.ckpt", "y.pt", "x.vae.pt", "x.vae.ckpt"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}")
    model(folder / "x.vae.safetensors")
    assert [(one.name, one.problem) for one in library.refresh()] == [("x.ckpt", None), ("y.pt", None)]


def test_a_folder_of_diffusers_is_one_checkpoint(library: CheckpointLibrary, folder: Path):
    home = folder / "deep" / "sd-v1.5"
    for part in ("unet", "vae", "text_encoder"):
        (home / part).mkdir(parents=True)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        model(home / part / f"{stem}.fp16.safetensors")
    (home / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', "utf-8")
    (found,) = library.refresh()
    assert (found.name, found.model_name, found.problem) == ("deep/sd-v1.5", "sd-v1.5", None)
    assert found.size == sum(path.stat().st_size for path in home.rglob("*.safetensors"))
    hashed = library.hashed(library.find("sd-v1.5"))
    assert hashed.sha256 and library.refresh()[0].sha256 == hashed.sha256
    assert library.find(hashed.shorthash or "").path == home
    model(home / "unet" / "diffusion_pytorch_model.fp16.safetensors", b"5678")
    assert library.hashed(library.refresh()[0]).sha256 != hashed.sha256
    (home / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert library.refresh()[0].problem == "the folder is incomplete: there are no weights in vae"
    (home / "model_index.json").write_text('{"_class_name": ["pipeline", "Evil"]}', "utf-8")
    assert "not supported" in str(library.refresh()[0].problem)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(library: CheckpointLibrary, folder: Path):
    model(folder / "x.safetensors").chmod(0)
    assert "Permission denied" in str(problem(library, "x.safetensors"))
    (folder / "x.safetensors").chmod(0o600)
    assert problem(library, "x.safetensors") is None


def test_odd_names_are_safe_and_selectable(library: CheckpointLibrary, folder: Path):
    odd = [b"a\nb", b"<img src=x onerror=alert(1)>", b"-rf", b"caf\xe9", b"CON", b"\xe2\x80\xae", b"x" * 243]
    for number, name in enumerate(odd):
        model(Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".safetensors")), b"%4d" % number)
    listed = library.refresh()
    assert len(listed) == len(odd) and all(checkpoint.problem is None for checkpoint in listed)
    for checkpoint in listed:
        assert checkpoint.name.isprintable() and checkpoint.name.encode("utf-8")
        hashed = library.hashed(checkpoint)
        assert library.find(hashed.shorthash or "") == hashed == library.find(hashed.title)
    assert CheckpointLibrary([folder], library._cache.path).find(listed[0].name).sha256


def test_loops_of_links_end(library: CheckpointLibrary, folder: Path, tmp_path: Path):
    model(folder / "sub" / "x.safetensors")
    (folder / "sub" / "again").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    model(tmp_path / "elsewhere" / "y.safetensors")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert names(library) == ["sub/x.safetensors"]
    named = CheckpointLibrary([folder, tmp_path / "elsewhere"], tmp_path / "more.db")
    assert names(named) == ["linked/y.safetensors", "sub/x.safetensors"]


def test_a_link_out_of_the_folders_is_told_and_not_opened(library: CheckpointLibrary, folder: Path, tmp_path: Path):
    model(tmp_path / "elsewhere" / "y.safetensors")
    (folder / "y.safetensors").symlink_to(tmp_path / "elsewhere" / "y.safetensors")
    (folder / "inside.safetensors").symlink_to(model(folder / "sub" / "x.safetensors"))
    found = {checkpoint.name: checkpoint.problem for checkpoint in library.refresh()}
    assert "leads out" in str(found.pop("y.safetensors")) and "--model-tree" in str(problem(library, "y.safetensors"))
    assert found == {"inside.safetensors": None, "sub/x.safetensors": None}


def test_hashes_are_kept_until_the_file_changes(
    library: CheckpointLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = model(folder / "x.safetensors", b"AAAA")
    first = library.hashed(library.find("x"))
    calls: list[Path] = []
    monkeypatch.setattr("modules.library.cache.digests_of", lambda p, w: calls.append(p) or digests_of(p, w))
    again = CheckpointLibrary([folder], library._cache.path)
    assert again.find("x").title == first.title and again.hashed(again.find("x")) == first and calls == []
    replaced = model(folder / "new", b"BBBB")
    os.utime(replaced, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # same size, same time
    replaced.replace(path)
    changed = again.hashed(again.find("x"))
    assert calls == [path] and changed.sha256 != first.sha256
    assert [checkpoint.sha256 for checkpoint in again.refresh()] == [changed.sha256]


def test_a_growing_file_is_incomplete_then_whole(library: CheckpointLibrary, folder: Path):
    path = model(folder / "x.safetensors", b"12")
    assert "incomplete" in str(problem(library, "x.safetensors"))
    with path.open("ab") as file:
        file.write(b"34")
    assert problem(library, "x.safetensors") is None


def test_a_deleted_file_is_said(library: CheckpointLibrary, folder: Path):
    checkpoint = library.find(model(folder / "x.safetensors").name)
    checkpoint.path.unlink()
    with pytest.raises(ModelFileError, match="x.safetensors: is not there any more"):
        library.hashed(checkpoint)
    assert names(library) == []


def test_autov3_finds_what_was_hashed_once(library: CheckpointLibrary, folder: Path):
    model(folder / "x.safetensors", b"AAAA")
    model(folder / "y.safetensors", b"BBBB")
    first, second = (library.hashed(library.find(name)) for name in ("x", "y"))
    assert first.body_sha256 == hashlib.sha256(b"AAAA").hexdigest()
    assert library.find(first.body_sha256) == first
    assert CheckpointLibrary([folder], library._cache.path).find(str(second.body_sha256)[:12].upper()) == second


def test_a_cache_of_an_earlier_version_is_kept(library: CheckpointLibrary, folder: Path, tmp_path: Path):
    model(folder / "x.safetensors")
    hashed = library.hashed(library.find("x"))
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as database, database:
        database.execute(
            "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode TEXT, sha256 TEXT, "
            "checked INTEGER, problem TEXT)"
        )
        now = hashed.fingerprint
        row = (os.fsencode(hashed.path), now.size, now.mtime_ns, str(now.inode), hashed.sha256, 1, None)
        database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    cache = FileCache(old)
    facts = cache.get(hashed.path, now)
    assert facts is not None and (facts.sha256, facts.body_sha256) == (hashed.sha256, None)
    assert cache.digests(hashed.path).body_sha256 == hashed.body_sha256
    again = FileCache(old).get(hashed.path, now)
    assert again is not None and again.body_sha256 == hashed.body_sha256
    assert not again.checked  # what its header tells was not kept then: it is looked at again


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, b"SQLite format 3\0" + bytes(500)])
def test_a_broken_cache_starts_anew(folder: Path, tmp_path: Path, content: bytes):
    model(folder / "x.safetensors")
    cache = tmp_path / "models.db"
    cache.write_bytes(content)
    checkpoint = CheckpointLibrary([folder], cache).find("x")
    hashed = CheckpointLibrary([folder], cache).hashed(checkpoint)
    assert CheckpointLibrary([folder], cache).find("x").sha256 == hashed.sha256


def test_a_cache_that_cannot_be_written_is_no_hindrance(folder: Path, tmp_path: Path):
    model(folder / "x.safetensors")
    (tmp_path / "file").write_text("")
    library = CheckpointLibrary([folder], tmp_path / "file" / "models.db")
    assert library.hashed(library.find("x")).sha256 == library.find("x").sha256 is not None


def test_ten_thousand_files(library: CheckpointLibrary, folder: Path):
    for number in range(10_000):
        (folder / f"m{number}.safetensors").write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + b"1234")
    with ends(60):  # it takes 2 to 3.5; bench/scanning.py measures 50,000
        assert len(library.list()) == 10_000
        assert len(CheckpointLibrary([folder], library._cache.path).list()) == 10_000


def test_many_large_headers_do_not_hold_up_the_list(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modules.library.checkpoints.CHECK_BUDGET_S", 0.0)
    model(folder / "x.safetensors", b"12")  # the brief look cannot see that it is cut
    (folder / "page.safetensors").write_bytes(b"<html>" + b" " * 100)
    library = CheckpointLibrary([folder], tmp_path / "models.db")
    assert problem(library, "x.safetensors") is None and "HTML" in str(problem(library, "page.safetensors"))
    monkeypatch.setattr("modules.library.checkpoints.CHECK_BUDGET_S", 5.0)
    assert "incomplete" in str(problem(library, "x.safetensors"))


def test_a_brief_look_counts_until_the_file_changes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modules.library.checkpoints.CHECK_BUDGET_S", -1.0)
    folder.mkdir()
    path = folder / "x.safetensors"
    path.write_bytes(b"<html>" + b" " * 100)
    library = CheckpointLibrary([folder], tmp_path / "models.db")
    assert "HTML" in str(problem(library, "x.safetensors"))
    with monkeypatch.context() as patched:
        patched.setattr("modules.library.checkpoints.open_regular", lambda path: pytest.fail("looked at again"))
        assert "HTML" in str(problem(library, "x.safetensors"))
    path.write_bytes(b"")
    assert "empty" in str(problem(library, "x.safetensors"))


def test_the_usual_one_stays_while_it_is_there(library: CheckpointLibrary, folder: Path):
    assert library.usual() is None
    for name in ("m", "n"):
        model(folder / f"{name}.safetensors")
    library.refresh()
    assert named(library.usual()) == "m"
    model(folder / "a.safetensors")  # merged or downloaded meanwhile
    library.refresh()
    assert named(library.usual()) == "m"
    (folder / "m.safetensors").unlink()
    library.refresh()
    assert named(library.usual()) == "a"


def named(checkpoint: Checkpoint | None) -> str:
    assert checkpoint is not None
    return checkpoint.model_name


def test_nothing_here_imports_torch():
    code = "import sys, modules.library.checkpoints; assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_checkpoint_is_plain_data(library: CheckpointLibrary, folder: Path):
    checkpoint = library.find(model(folder / "x.safetensors").name)
    assert isinstance(checkpoint, Checkpoint) and checkpoint.size == checkpoint.path.stat().st_size
    assert checkpoint.mtime_ns == checkpoint.path.stat().st_mtime_ns


def test_in_a_huge_folder_every_file_has_its_turn(
    library: CheckpointLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The walk past files that are known uses nothing of the time for new ones."""
    monkeypatch.setattr("modules.library.checkpoints.CHECK_BUDGET_S", 0.0)  # suffices for one file
    for number in range(5):
        model(folder / f"{number}.safetensors", b"%4d" % number)
    for round in range(1, 6):
        assert sum(bool(one.facts.content) for one in library.refresh()) == round
