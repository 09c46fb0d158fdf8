"""All kinds in one list: ids, search, folders, duplicates."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.library.catalogue import Catalogue, UnknownModel, Wanted, metadata_of, tags_of
from modules.library.facts import KINDS
from tests.jobs.scene import make_app
from tests.library.test_facts import FIRST, save

XL = {**FIRST, "conditioner.embedders.1.model.ln_final.weight": (1,)}
LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}
CONTROL = {"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def fill(tmp_path: Path, models: Path) -> Iterator[Catalogue]:
    save(models / "Stable-diffusion" / "sub" / "xl.safetensors", XL)
    save(models / "VAE" / "sharp.safetensors", {"decoder.conv_in.weight": (1, 4, 3, 3)})
    save(models / "Lora" / "style 10.safetensors", LORA, {"ss_output_name": "Fancy", "ss_sd_model_name": "x/ponyV6"})
    save(models / "Lora" / "people" / "style 2.safetensors", LORA)
    save(tmp_path / "embeddings" / "bad.safetensors", {"emb_params": (2, 768)})
    (models / "hypernetworks").mkdir()
    (models / "hypernetworks" / "h.pt").write_bytes(b"PK\3\4 h")
    save(models / "ESRGAN" / "4x.safetensors",
         {"conv_first.weight": (1, 3), "conv_last.weight": (1, 1), "body.0.rdb1.conv1.weight": (1, 1),
          "conv_up1.weight": (1, 1), "conv_up2.weight": (1, 1)})  # fmt: skip
    save(models / "ControlNet" / "canny.safetensors", CONTROL)
    save(models / "text_encoder" / "t5.safetensors",
         {"encoder.block.0.layer.0.x.weight": (1,), "shared.weight": (1, 4096)})  # fmt: skip
    save(models / "unet" / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (1, 1)})
    app = make_app(tmp_path)
    yield app.models
    app.store.close()


def test_every_kind_is_listed_with_what_its_header_tells(fill: Catalogue):
    found = {(one.kind, one.name): one for one in fill.records()}
    assert {kind for kind, _ in found} == set(KINDS)
    assert found["checkpoint", "xl"].facts.family == "SDXL" and found["checkpoint", "xl"].folder == "sub"
    assert found["controlnet", "canny"].facts.family == "SD 1.x"
    assert found["text_encoder", "t5"].facts.family == "T5-XXL"
    assert found["unet", "flux"].facts.prediction == "flow"
    assert found["upscaler", "4x"].folder == "ESRGAN" and found["upscaler", "4x"].facts.kind == "upscaler"
    assert found["lora", "style 10"].alias == "Fancy"
    assert found["embedding", "bad"].facts.family == "SD 1.x"
    assert all(one.id and one.size and one.mtime_ns and not one.problem for one in found.values())
    assert len({one.id for one in found.values()}) == len(found)
    for one in found.values():
        assert fill.find(one.id) == one


def test_a_page_of_what_is_asked_for(fill: Catalogue):
    def names(**wanted: object) -> list[str]:
        return [one.name for one in fill.page(Wanted(**wanted)).models]  # type: ignore[arg-type]

    assert names(kinds=("lora",)) == ["style 2", "style 10"]
    assert names(kinds=("lora",), descending=True) == ["style 10", "style 2"]
    assert names(kinds=("lora",), folder="people") == ["style 2"] and names(kinds=("lora",), folder="peo") == []
    assert names(search="FANCY") == ["style 10"] and names(search="pony style") == ["style 10"]
    assert names(family="SDXL") == ["xl"] and names(family="FLUX.1") == ["flux"]
    assert names(kinds=("lora",), limit=1, offset=1) == ["style 10"]
    assert names(sort="size", descending=True, limit=1) == ["t5"]
    page = fill.page(Wanted(kinds=("lora", "checkpoint")))
    assert page.total == 4 and page.families == {"SD 1.x": 2, "SDXL": 1, "unknown": 1}
    assert page.kinds == {"checkpoint": 2, "lora": 2}
    assert fill.page(Wanted(family="unknown")).total == 4  # plain, sharp, h, 4x
    assert fill.folders("lora") == {"": 1, "people": 1}


def test_ids_stay_when_files_move_and_copies_have_their_own(fill: Catalogue, models: Path):
    (first,) = (one for one in fill.records("lora") if one.name == "style 10")
    moved = models / "Lora" / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    first.file.rename(moved)
    fill.refresh("lora")
    assert fill.find(first.id).file == moved
    shutil.copy(moved, models / "Lora" / "copy.safetensors")
    fill.refresh("lora")
    ids = [one.id for one in fill.records("lora")]
    assert len(set(ids)) == 3 and sum(id.startswith(first.id) for id in ids) == 2
    (group,) = fill.duplicates()
    assert {one.name for one in group} == {"copy", "renamed"}
    copy = next(id for id in ids if "-" in id)
    assert fill.find(copy).name == "copy"  # whatever the order of their names
    fill.find(copy).file.unlink()
    fill.refresh("lora")
    assert fill.find(copy).id == first.id  # the id of a copy that is gone means what is left
    with pytest.raises(UnknownModel):
        fill.find("0" * 20)
    assert fill.duplicates() == []


def test_hashes_tell_apart_what_only_looked_alike(fill: Catalogue, models: Path):
    size = {"a.lora_down.weight": (64, 20_000)}
    one = save(models / "Lora" / "one.safetensors", size)
    two = Path(shutil.copy(one, models / "Lora" / "two.safetensors"))
    os.symlink(one, models / "Lora" / "link.safetensors")
    with two.open("r+b") as file:
        file.seek(HOLE)
        file.write(b"between the samples")
    fill.refresh("lora")
    (group,) = fill.duplicates("lora")
    assert {record.name for record in group} < {"one", "two", "link"} and len(group) == 2
    for record in group:
        assert fill.hashed(record).sha256
    assert fill.duplicates("lora") == []
    shutil.copy(one, two)
    fill.refresh("lora")
    (group,) = fill.duplicates("lora")
    assert len({fill.hashed(record).sha256 for record in group}) == 1
    assert all(record.sha256 for record in fill.duplicates("lora")[0])


HOLE = 100_000  # bytes from the start: in no sample of a file of 2.5 MB


def test_names_that_collide_stay_tellable_apart(fill: Catalogue, models: Path):
    save(models / "Lora" / "a" / "same.safetensors", LORA)
    save(models / "Lora" / "b" / "same.safetensors", LORA)
    fill.refresh("lora")
    same = [one for one in fill.records("lora") if one.name == "same"]
    assert sorted(one.value for one in same) == ["a/same", "same"] and len({one.id for one in same}) == 2
    for one in same:
        file = fill.networks.find("lora", one.value)
        assert file is not None and file.file == one.path


def test_broken_files_are_listed_with_the_reason(fill: Catalogue, models: Path):
    folder = models / "ControlNet"
    (folder / "empty.safetensors").touch()
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html>")
    (folder / "cut.gguf").write_bytes(b"GGUF")
    (folder / "huge.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "nowhere.safetensors").symlink_to(folder / "gone")
    (folder / "half.safetensors.part").write_bytes(b"x")
    fill.refresh("controlnet")
    found = {one.name: one.problem for one in fill.records("controlnet")}
    for name, word in {"empty": "empty", "page": "HTML", "cut": "", "huge": "corrupt", "pipe": "named pipe",
                       "nowhere": "nowhere"}.items():  # fmt: skip
        assert word in str(found.pop(name)), name
    assert found == {"canny": None}


def test_words_of_the_training_pictures(tmp_path: Path):
    path = save(tmp_path / "x.safetensors", LORA, {
        "ss_tag_frequency": '{"10_x": {" cat ": 3, "<script>": 1, "bad": "x", "no": -1}, "2_y": {"cat": 2}, "z": 5}'
    })  # fmt: skip
    from modules.library.header import read_header

    assert tags_of(read_header(path).metadata) == [("cat", 5), ("<script>", 1)]
    for broken in ("[1]", "{", "{" * 5000, '{"a": [1]}'):
        assert tags_of({"ss_tag_frequency": broken}) == []


def test_metadata_of_every_format(fill: Catalogue):
    for record in fill.records():
        assert isinstance(metadata_of(record), dict)


def test_of_many_copies_none_is_lost(fill: Catalogue, models: Path, monkeypatch: pytest.MonkeyPatch):
    """Six digits of a place are not enough for all of them."""
    from modules.library import catalogue

    place = catalogue._place
    monkeypatch.setattr(catalogue, "_place", lambda record: "000000" + place(record)[6:])
    one = save(models / "Lora" / "copy 0.safetensors", LORA)
    for number in range(1, 5):
        shutil.copy(one, models / "Lora" / f"copy {number}.safetensors")
    fill.refresh("lora")
    found = [record for record in fill.records("lora") if record.name.startswith("copy")]
    assert len(found) == 5 == len({record.id for record in found})
    assert all(fill.find(record.id) == record for record in found)


def test_odd_names_are_text(fill: Catalogue, models: Path):
    odd = [b"a\nb", b"<img src=x onerror=alert(1)>", b"-rf", b"caf\xe9", b"CON", b"\xe2\x80\xae", b"x" * 240]
    for number, name in enumerate(odd):
        for folder, shapes in (("Lora", LORA), ("ControlNet", CONTROL)):
            path = Path(os.fsdecode(os.fsencode(models / folder / "odd") + b"/" + name + b".safetensors"))
            save(path, {**shapes, f"n{number}": (number + 1,)})
    fill.refresh("lora", "controlnet")
    found = [record for record in fill.records("lora", "controlnet") if record.folder == "odd"]
    assert len(found) == 2 * len(odd)
    for record in found:
        for text in (record.name, record.value, record.folder, record.alias):
            assert text.isprintable() or text == ""
            assert text.encode("utf-8") is not None
        assert fill.find(record.id) == record and record.problem is None
