import json
import struct
from pathlib import Path

import pytest

from modules.library.header import ModelFileError
from modules.library.networks import Kind, NetworkLibrary


def save(path: Path, metadata: dict[str, str] | None = None, tensors: int = 1) -> Path:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    for i in range(tensors):
        header[f"t{i}"] = {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(tensors))
    return path


def library(root: Path, *folders: Path, kind: Kind = "lora") -> NetworkLibrary:
    return NetworkLibrary({kind: folders or [root / "loras"]}, root / "cache" / "networks.db")


def test_names_aliases_and_versions(tmp_path: Path):
    loras = tmp_path / "loras"
    save(loras / "b10.safetensors", {"ss_output_name": "Fancy", "ss_base_model_version": "sdxl_base_v1-0"})
    save(loras / "b2.safetensors", {"ss_v2": "True"})
    save(loras / "sub" / "c.safetensors", {"ss_output_name": 'quote " and ü', "note": '{"ss_output_name":"wrong"}'})
    save(loras / "d.safetensors")
    (loras / "old.pt").write_bytes(b"PK\3\4")
    (loras / "notes.txt").write_text("x")
    found = {file.name: file for file in library(tmp_path).list("lora")}
    assert list(found) == ["b2", "b10", "d", "old", "c"]
    assert [found[n].alias for n in ("b2", "b10", "d", "c")] == ["b2", "Fancy", "d", 'quote " and ü']
    assert [found[n].trained_for for n in ("b2", "b10", "d", "c", "old")] == [
        "SD2",
        "SDXL",
        "Unknown",
        "SD1",
        "Unknown",
    ]


def test_a_name_is_found_as_in_a1111_and_then_in_any_case(tmp_path: Path):
    loras = tmp_path / "loras"
    save(loras / "one.safetensors", {"ss_output_name": "Style"})
    save(loras / "sub" / "two.safetensors", {"ss_output_name": "Style"})
    save(loras / "three.safetensors", {"ss_output_name": "Other"})
    save(loras / "none.safetensors", {"ss_output_name": "None"})
    shelf = library(tmp_path)

    def name(text: str) -> str | None:
        found = shelf.find("lora", text)
        return found.name if found else None

    assert [name(text) for text in ("one", "Other", "OTHER", "ONE", "sub/two", "nothing")] == [
        *("one", "three", "three", "one", "two"),
        None,
    ]
    by_name = {file.name: file for file in shelf.list("lora")}
    assert shelf.shown_name(by_name["three"]) == "Other"
    assert shelf.shown_name(by_name["three"], "Filename") == "three"
    assert [shelf.shown_name(by_name[n]) for n in ("one", "two", "none")] == ["one", "two", "none"]  # ambiguous aliases
    assert shelf.nearest("lora", "tree") == ["three"]


def test_of_two_of_one_name_the_last_counts(tmp_path: Path):
    save(tmp_path / "loras" / "a" / "x.safetensors", {"ss_output_name": "first"})
    save(tmp_path / "loras" / "b" / "x.safetensors", {"ss_output_name": "second"})
    (found,) = library(tmp_path).list("lora")
    assert found.alias == "second"


def test_new_files_are_found_when_missed_and_changed_ones_after_a_refresh(tmp_path: Path):
    shelf = library(tmp_path)
    assert shelf.find("lora", "new") is None
    path = save(tmp_path / "loras" / "new.safetensors", {"ss_output_name": "v1"})
    found = shelf.find("lora", "new")
    assert found and found.alias == "v1"
    save(path, {"ss_output_name": "version two"})
    shelf.refresh("lora")
    assert shelf.list("lora")[0].alias == "version two"
    path.unlink()
    shelf.refresh()
    assert shelf.list("lora") == ()


def test_broken_files_say_why(tmp_path: Path):
    loras = tmp_path / "loras"
    save(loras / "short.safetensors").write_bytes(struct.pack("<Q", 10_000) + b"{")
    save(loras / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>" * 9)
    save(loras / "empty.pt").write_bytes(b"")
    problems = {file.name: file.problem for file in library(tmp_path).list("lora")}
    assert "incomplete" in str(problems["short"])
    assert "HTML page" in str(problems["page"])
    assert "empty" in str(problems["empty"])


def test_long_metadata_are_read_to_their_end(tmp_path: Path):
    save(tmp_path / "loras" / "x.safetensors", {"a": "z" * 200_000, "ss_output_name": "late"}, tensors=100)
    assert library(tmp_path).list("lora")[0].alias == "late"


def test_hashes_as_measured(golden: Path, tmp_path: Path):
    facts = json.loads((golden / "hashes.json").read_text())
    shelf = NetworkLibrary({"lora": [golden / "models"], "embedding": [golden / "models"]}, tmp_path / "n.db")
    for name, known in facts["networks"].items():
        file = shelf.find("lora", name)
        assert file is not None
        assert shelf.by_hash("lora", known["shorthash"]) is None  # nothing has been read yet
        assert shelf.hash(file) == known["hash"] and shelf.shorthash(file) == known["shorthash"]
        assert shelf.by_hash("lora", known["shorthash"]) == file
        assert (file.alias, file.trained_for) == (known["alias"], known["sd_version"])
        metadata = {k: v for k, v in shelf.metadata(file).items() if k != "ss_tag_frequency"}
        assert metadata == {k: v for k, v in known["metadata"].items() if k != "ss_tag_frequency"}
    for name, known in facts["embeddings"].items():
        file = shelf.find("embedding", name.upper())
        assert file is not None and shelf.hash(file) == known["hash"]


def test_a_hash_in_the_metadata_is_believed(tmp_path: Path):
    save(tmp_path / "loras" / "x.safetensors", {"sshs_model_hash": "ab" * 32})
    shelf = library(tmp_path)
    file = shelf.list("lora")[0]
    assert shelf.shorthash(file) == "abababababab"
    assert shelf.by_hash("lora", "abababababab") == file


def test_pictures_beside_embeddings_are_previews(tmp_path: Path):
    folder = tmp_path / "embeddings"
    save(folder / "sub" / "style.safetensors")
    for name in ("style.png", "style.preview.png"):
        (folder / "sub" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "only a picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in library(tmp_path, folder, kind="embedding").list("embedding")] == ["style"]


def test_a_folder_linked_into_itself_is_entered_once(tmp_path: Path):
    save(tmp_path / "loras" / "sub" / "x.safetensors")
    (tmp_path / "loras" / "sub" / "again").symlink_to(tmp_path / "loras")
    (tmp_path / "loras" / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert len(library(tmp_path).list("lora")) == 1


def test_a_second_start_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(2000):
        save(tmp_path / "loras" / f"style{i // 100}" / f"net{i}.safetensors", {"ss_output_name": f"alias{i}"})
    monkeypatch.setattr("modules.library.networks.LOOK_BUDGET_S", 60)
    first = library(tmp_path).list("lora")

    def never(*args: object) -> None:
        raise AssertionError("a known file was opened")

    monkeypatch.setattr("modules.library.networks.look_at", never)
    assert library(tmp_path).list("lora") == first and len(first) == 2000  # bench/networks.py measures 10 000


def test_a_broken_cache_is_forgotten(tmp_path: Path):
    save(tmp_path / "loras" / "x.safetensors", {"ss_output_name": "alias"})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "networks.db").write_bytes(b"nonsense" * 1000)
    shelf = library(tmp_path)
    assert shelf.list("lora")[0].alias == "alias"
    assert shelf.refresh() is None
    assert len(shelf.hash(shelf.list("lora")[0])) == 64


def test_a_file_that_has_gone_has_no_hash(tmp_path: Path):
    path = save(tmp_path / "loras" / "x.safetensors")
    shelf = library(tmp_path)
    (file,) = shelf.list("lora")
    path.unlink()
    with pytest.raises(ModelFileError, match="not there any more"):
        shelf.hash(file)
