"""What a batch is asked to show at each call of the model; and all measured conditionings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.families.family import UNTOLD, Conditioning, Model, TextOptions
from modules.families.sd1 import SD1Family
from modules.generation import prompts as prompts_module
from modules.generation.prompts import Encoder, Padding, Prompts, padded, together
from modules.library.header import read_header
from modules.prompt.attention import Emphasis
from modules.prompt.schedule import Timeline
from tests.golden import golden as golden
from tests.tiny import FP32
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

LONG = "cat " * 80


class Counted:
    """A model that tells which texts it was asked to encode."""

    def __init__(self, model: Model):
        self.model, self.asked = model, list[tuple[str, ...]]()

    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        self.asked.append(tuple(texts))
        return self.model.encode(texts, options, negative)


def alone(model: Model, text: str) -> Tensor:
    """(1, 77·n, D)"""
    return model.encode([text], TextOptions()).cross


@pytest.fixture
def encoder(tiny_model: Model) -> Encoder:
    return Encoder(tiny_model, TextOptions())


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_prompt_says_what_its_schedule_says(tiny_model: Model, encoder: Encoder) -> None:
    prompts = Prompts(["[a|b] cat"], ["[dog::2]"], encoder, Timeline(4))
    found = [prompts.next() for _ in range(6)]
    for call, text in enumerate(["a cat", "a cat", "b cat", "a cat", "b cat", "a cat"]):  # beyond the end: the first
        close(found[call][0].cross, alone(tiny_model, text))
    for call, text in enumerate(["dog", "dog", "dog", "", "", "dog"]):
        close(found[call][1].cross, alone(tiny_model, text))


def test_the_texts_of_one_schedule_are_encoded_together(tiny_model: Model) -> None:
    counted: Any = Counted(tiny_model)
    prompts = Prompts(["[a:(b:1.5):2] c", "d"], ["x", "x"], Encoder(counted, TextOptions()), Timeline(4))
    conds = [prompts.next()[0] for _ in range(4)]
    assert counted.asked == [("a c", "(b:1.5) c"), ("d",), ("x",)]
    group = tiny_model.encode(["a c", "(b:1.5) c"], TextOptions()).cross
    close(conds[0].cross[:1], group[:1])
    close(conds[3].cross[:1], group[1:])
    assert (conds[0].cross[:1] - alone(tiny_model, "a c")).abs().max() > 1e-4  # they share one mean


def test_a_short_text_of_a_long_schedule_has_empty_chunks(tiny_model: Model, encoder: Encoder) -> None:
    prompts = Prompts([f"[cat:{LONG}:2]", "dog"], ["", ""], encoder, Timeline(4))
    cross = prompts.next()[0].cross
    assert cross.shape[1] == 154
    close(cross[:1, 77:], alone(tiny_model, ""))
    close(cross[1:, 77:], alone(tiny_model, "dog")[:, -1:].expand(1, 77, -1))  # another prompt repeats its last vector


def test_parts_belong_to_their_image(tiny_model: Model, encoder: Encoder) -> None:
    prompts = Prompts(["a AND b :0.5", "c"], ["", ""], encoder, Timeline(4))
    assert (prompts.owners, prompts.weights, prompts.is_plain) == ([0, 0, 1], [1.0, 0.5, 1.0], False)
    cond, uncond = prompts.next()
    assert (len(cond), len(uncond)) == (3, 2)
    close(cond.cross[1:2], alone(tiny_model, "b"))
    assert Prompts(["a", "b"], ["", ""], encoder, Timeline(4)).is_plain


def test_the_next_pass_and_another_model_go_on(tiny_model: Model, encoder: Encoder) -> None:
    prompts = Prompts(["[a:b:2]"], [""], encoder, Timeline(4), call=3)
    close(prompts.next()[0].cross, alone(tiny_model, "b"))
    counted: Any = Counted(tiny_model)
    prompts.encode_with(Encoder(counted, TextOptions()))
    prompts.next()
    assert counted.asked == [("a", "b"), ("",)]


def test_nothing_is_encoded_twice_and_not_all_is_kept(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "KEPT_TEXTS", 3)
    counted: Any = Counted(tiny_model)
    encoder = Encoder(counted, TextOptions())
    for text in ("a", "b", "a", "c", "a", "d", "a", "b"):
        encoder.group([text])
    assert [texts for (texts,) in counted.asked] == ["a", "b", "c", "d", "b"]
    encoder.group(["a"], negative=True)
    assert len(counted.asked) == 6


@pytest.mark.parametrize("how", get_args(Padding))
@pytest.mark.parametrize("longer", ["prompt", "negative"])
def test_padding(how: Padding, longer: str, tiny_model: Model, encoder: Encoder) -> None:
    texts = (LONG, "dog") if longer == "prompt" else ("dog", LONG)
    prompts = Prompts([texts[0]], [texts[1]], encoder, Timeline(4), padding=how)
    assert not prompts.padded
    cond, uncond = prompts.next()
    assert prompts.padded is (how != "none")
    empty, dog = alone(tiny_model, ""), alone(tiny_model, "dog")
    lengths = (cond.cross.shape[1], uncond.cross.shape[1])
    if how == "none":
        assert lengths == ((154, 77) if longer == "prompt" else (77, 154))
    elif how == "chunks":
        assert lengths == (154, 154)
        close((uncond if longer == "prompt" else cond).cross, torch.cat([dog, empty], 1))
    elif longer == "prompt":
        close(uncond.cross, torch.cat([dog, dog[:, -1:].expand(1, 77, -1)], 1))
    else:
        assert lengths == (77, 77)
        close(uncond.cross, alone(tiny_model, LONG)[:, :77])


def test_padding_keeps_vectors() -> None:
    cond, uncond = Conditioning(torch.ones(1, 154, 2), torch.ones(1, 3)), Conditioning(torch.ones(1, 77, 2), None)
    for how in ("chunks", "v0"):
        found, _ = padded(cond, uncond, how, torch.zeros(1, 77, 2))  # type: ignore[arg-type]
        assert found.vector is cond.vector
    assert together([cond, cond]).vector is not None


@pytest.fixture(scope="module")
def measured_model(golden: Path) -> Model:
    path = golden / "models" / "tiny-sd1.safetensors"
    return SD1Family().load(path, read_header(path), path.with_suffix(".yaml"), FP32, UNTOLD)


def error(ours: Tensor, theirs: np.ndarray[Any, Any]) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs))


@torch.inference_mode()
def test_measured_conditionings(golden: Path, measured_model: Model) -> None:
    prompts = {p["index"]: p["prompt"] for p in json.loads((golden / "prompts" / "prompts.json").read_text("utf-8"))}
    measured = np.load(golden / "prompts" / "conds.npz")
    tried = [key for key in measured if "tinyemb" not in prompts[key].lower()]  # those are textual inversions
    assert len(tried) >= 70
    for key in tried:
        assert error(alone(measured_model, prompts[key])[0], measured[key]) < 1e-5, prompts[key]


# The README does not say what these two prompts were; the tensors do.
EMPHASIS_PROMPTS = {
    "a": "a (red:1.4) [circle], ((blue)) background",
    "b": "(one (two:0.7):1.2) BREAK (three) , " + "w " * 80,
}


@torch.inference_mode()
@pytest.mark.parametrize("emphasis", get_args(Emphasis))
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_measured_emphasis(emphasis: Emphasis, clip_skip: int, golden: Path, measured_model: Model) -> None:
    measured = np.load(golden / "prompts" / "emphasis_conds.npz")
    for name, prompt in EMPHASIS_PROMPTS.items():
        found = measured_model.encode([prompt], TextOptions(emphasis=emphasis, clip_skip=clip_skip)).cross[0]
        assert error(found, measured[f"{name}|{emphasis}|clipskip{clip_skip}"]) < 1e-5


def test_nothing_is_joined_anew_while_no_prompt_changes(encoder: Encoder) -> None:
    """What is done at every step is done twenty times a picture."""
    told = Prompts(["a cat", "a [dog:cow:2]"], ["", "grey"], encoder, Timeline(4))
    given = [told.next() for _ in range(4)]
    changed = [one[0] is not other[0] for one, other in zip(given, given[1:], strict=False)]
    assert sorted(changed) == [False, False, True]
