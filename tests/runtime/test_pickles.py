import os
import pickle
from pathlib import Path

import pytest
import torch

from modules.runtime import pickles
from modules.runtime.pickles import PickleError


def load_pickle(path: Path):
    with path.open("rb") as file:
        return pickles.load_pickle(file)


class Harmful:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_tensors_numbers_and_texts_come_in(tmp_path: Path):
    content = {"weights": {"a": torch.arange(3.0)}, "step": 7, "name": "x"}
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        read = load_pickle(tmp_path / "x.pt")
        assert read["weights"]["a"].tolist() == [0, 1, 2] and read["step"] == 7 and read["name"] == "x"


@pytest.mark.parametrize("how", ["bare", "zip", "old"])
def test_code_never_runs(how: str, tmp_path: Path):
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    content = {"state_dict": {"a": torch.zeros(1)}, "extra": Harmful(canary)}
    if how == "bare":
        path.write_bytes(pickle.dumps(Harmful(canary), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(PickleError, match="contains code"):
        load_pickle(path)
    assert not canary.exists()


def test_what_is_damaged_is_said(tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for broken in (whole[:-50], whole[:100], b"", b"\x80", b"PK\x03\x04"):
        path.write_bytes(broken)
        with pytest.raises(PickleError, match="damaged|contains|no file of PyTorch"):
            load_pickle(path)
