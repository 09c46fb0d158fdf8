"""The one loaded model: kept while asked for again, replaced when its file changes, and never half there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.families.family import Conditioning
from modules.families.loader import ModelHolder
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.header import ModelFileError
from tests.tiny import FP32, save_tiny


def library_of(folder: Path) -> CheckpointLibrary:
    return CheckpointLibrary([folder], folder / "cache.db")


def find(folder: Path, name: str) -> Checkpoint:
    return library_of(folder).find(name)


def test_a_loaded_model_is_kept_and_another_replaces_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, "one.safetensors", seed=1)
    save_tiny(tmp_path, "two.safetensors", seed=2)
    reports: list[str] = []
    holder = ModelHolder(FP32, reports.append)
    one = holder.get(find(tmp_path, "one"))
    assert holder.get(find(tmp_path, "one")) is one
    two = holder.get(find(tmp_path, "two"))
    assert two is not one
    assert any(report.startswith("loading one, ") for report in reports)
    x, t, c = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), Conditioning(torch.randn(1, 77, 32))
    with torch.inference_mode():
        assert not torch.allclose(one.predict_eps(x, t, c), two.predict_eps(x, t, c))


def test_a_replaced_file_is_loaded_again(tmp_path: Path) -> None:
    save_tiny(tmp_path, "one.safetensors", seed=1)
    holder = ModelHolder(FP32, lambda report: None)
    before = holder.get(find(tmp_path, "one"))
    save_tiny(tmp_path, "one.safetensors", seed=2)
    assert holder.get(find(tmp_path, "one")) is not before


def test_after_a_failed_load_the_next_one_works(tmp_path: Path) -> None:
    good = save_tiny(tmp_path, "good.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.read_bytes())
    bad = find(tmp_path, "broken")
    broken.write_bytes(good.read_bytes()[:-1000])
    holder = ModelHolder(FP32, lambda report: None)
    with pytest.raises(ModelFileError, match=r"broken\.safetensors"):
        holder.get(bad)
    holder.get(find(tmp_path, "good"))


def test_a_file_of_no_known_family_is_named(tmp_path: Path) -> None:
    weight = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4)}
    save_file(weight, tmp_path / "style.safetensors")
    style = next(one for one in library_of(tmp_path).list() if one.path.name == "style.safetensors")
    with pytest.raises(ModelFileError, match=r"style\.safetensors: not a checkpoint of a known family"):
        ModelHolder(FP32, lambda report: None).get(style)
