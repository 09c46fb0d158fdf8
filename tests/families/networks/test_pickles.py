import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.families.networks.pickles import load_pickle
from modules.library.header import ModelFileError


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_weights_come_in(tmp_path: Path):
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 3))})
    content: dict[Any, Any] = {
        "string_to_param": parameters,
        "string_to_token": {"*": 265},
        "step": 3,
        768: [{"a": torch.ones(1)}],
    }
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        if not zipped:  # whole modules are beyond torch's safe reader of its format before 1.6
            content["string_to_param"] = dict(parameters)
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        loaded = load_pickle(tmp_path / name)
        assert torch.equal(loaded["string_to_param"]["*"], torch.ones(2, 3)) and loaded["step"] == 3


@pytest.mark.parametrize("place", ["whole", "extra", "nested"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_is_never_run(tmp_path: Path, place: str, form: str):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    payload = Payload(canary)
    content = {"whole": payload, "extra": {"*": torch.ones(1), "extra": payload}, "nested": {"a": [{"b": payload}]}}[
        place
    ]
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelFileError, match=r"^evil.pt: (it contains code|damaged, or no file of PyTorch)"):
        load_pickle(path)
    assert not canary.exists()
    if form == "zip":
        with pytest.raises(ModelFileError, match=r"it contains code \((posix|nt)\.system\)"):
            load_pickle(path)


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1000)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "this file is empty"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"hello", "neither a zip archive nor a pickle"),
        (b"PK\3\4 and no archive", "a damaged zip archive"),
        (b"\x80\x02garbage", "damaged, or no file of PyTorch|contains code"),
        (saved()[:-200], "a damaged zip archive"),
        (struct.pack("<Q", 2) + b"{}", "neither a zip archive nor a pickle|JSON"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelFileError, match=f"^x.pt: .*({reason})"):
        load_pickle(tmp_path / "x.pt")


def test_archives_that_would_grow_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(50 * 2**20))
    with pytest.raises(ModelFileError, match="its archive would grow from"):
        load_pickle(tmp_path / "bomb.pt")


def test_no_reader_switches_the_safety_off():
    root = Path(__file__).resolve().parents[3]
    sources = [path.read_text("utf-8") for path in root.glob("modules/**/*.py")]
    assert not any("pickle_module=" in text or "weights_only=False" in text for text in sources)
    assert sum("torch.load(" in text for text in sources) == 1
