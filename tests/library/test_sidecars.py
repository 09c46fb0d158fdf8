import json
from pathlib import Path

import pytest

from modules.library.sidecars import Notes, beside, merged, notes_of, preview_of, without_tags


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my.model.v1.safetensors"
    path.write_bytes(b"x")
    return path


def test_what_a1111_and_civitai_wrote(model: Path):
    a1111 = {
        "description": "mine",
        "notes": "n",
        "activation text": "ohwx",
        "preferred weight": 0.7,
        "sd version": "SD1",
    }
    (model.parent / "my.model.v1.json").write_text(json.dumps(a1111))
    info = {"modelId": 7, "name": "v2", "baseModel": "SDXL 1.0", "trainedWords": ["one", "two", 3, ""],
            "model": {"name": "Great", "description": "<p>Hello <b>you</b></p><script>alert(1)</script>"}}  # fmt: skip
    (model.parent / "my.model.v1.civitai.info").write_text(json.dumps(info))
    found = notes_of(model)
    assert found == Notes(
        "mine", "n", "ohwx", "", 0.7, "SD1", "Great – v2", ("one", "two"), "SDXL 1.0", "https://civitai.com/models/7"
    )
    (model.parent / "my.model.v1.json").unlink()
    assert notes_of(model).description == "Hello you"
    (model.parent / "my.model.v1.civitai.info").unlink()
    (model.parent / "my.model.v1.txt").write_text("plain")
    assert notes_of(model) == Notes(description="plain")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b"{" * 5000, b'{"description": 5, "preferred weight": "NaN", "notes": null}',
     b'{"model": [], "trainedWords": {"a": 1}, "modelId": "../x"}', b" " * (2**20 + 1)],
)  # fmt: skip
def test_broken_ones_are_left_out(model: Path, content: bytes):
    for ending in (".json", ".civitai.info"):
        beside(model, ending).write_bytes(content)
    assert notes_of(model) == Notes()


def test_texts_are_texts(model: Path):
    hostile = "<img src=x onerror=alert(1)>\x00\x1b[31m\u202e [x](javascript:alert(1))\nnext"
    beside(model, ".json").write_text(json.dumps({"notes": hostile, "description": "y" * 100_000}))
    found = notes_of(model)
    assert found.notes == "<img src=x onerror=alert(1)>[31m [x](javascript:alert(1))\nnext"
    assert len(found.description) == 20_000
    assert without_tags("<div>a<br>b &lt;c&gt;</div><style>x{}</style><p>d") == "a\nb <c>\nd"


def test_notes_are_merged_and_nothing_is_lost(model: Path):
    path = beside(model, ".json")
    assert json.loads(merged(model, {"notes": "ä"})) == {"notes": "ä"}
    path.write_text(json.dumps({"vae": "x.pt", "activation text": "old", "other": [1]}))
    changed = json.loads(merged(model, {"activation_text": "new", "preferred_weight": 0.5}))
    assert changed == {"vae": "x.pt", "activation text": "new", "other": [1], "preferred weight": 0.5}
    path.write_text("{broken")
    with pytest.raises(ValueError, match="my.model.v1.json beside the model cannot be read"):
        merged(model, {"notes": "x"})


def test_previews_by_a1111s_names(model: Path):
    assert preview_of(model) is None
    for name in ("my.model.v1.preview.jpg", "my.model.v1.preview.png", "my.model.v1.webp", "my.model.v1.png"):
        (model.parent / name).touch()
        names = frozenset(path.name for path in model.parent.iterdir())
        assert preview_of(model) == preview_of(model, names) == model.parent / name
    folder = model.parent / "sd.v1.5"
    folder.mkdir()
    (model.parent / "sd.v1.5.png").touch()
    assert preview_of(folder) == preview_of(folder, frozenset({"sd.v1.5.png"})) == model.parent / "sd.v1.5.png"
