"""SDXL: both text encoders with weights and chunks, clip skip, no negative prompt, the numbers beside the prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checkpoints import Parts
from modules.families.family import TextOptions
from modules.families.loader import read_model
from modules.families.sdxl import SDXL
from modules.library.header import ModelFileError
from tests.tiny import FP32, save_tiny_of, tiny_parts

CAT = [49406, 320, 2368, 49407]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[SDXL, Parts]:
    parts = tiny_parts("sdxl")
    path = save_tiny_of(tmp_path_factory.mktemp("models") / "xl.safetensors", "sdxl", parts)
    model = read_model(path, FP32)
    assert isinstance(model, SDXL)
    return model, parts


def states(text_encoder: Any, ids: list[int], pad: int) -> tuple[Tensor, Any]:
    given = text_encoder(torch.tensor([ids + [pad] * (77 - len(ids))]), output_hidden_states=True)
    return given.hidden_states, given


@torch.inference_mode()
def test_layers_of_both_encoders(loaded: tuple[SDXL, Parts]) -> None:
    model, parts = loaded
    small, _ = states(parts.text_encoder, CAT, 49407)
    large, given = states(parts.text_encoder_2, CAT, 0)
    options = TextOptions(width=640, height=512, crop_top=3, crop_left=4)
    cond = model.encode(["a cat"], options)
    torch.testing.assert_close(cond.cross, torch.cat([small[-2], large[-2]], dim=-1))
    assert cond.vector is not None
    torch.testing.assert_close(cond.vector[:, :48], given.text_embeds)
    assert cond.vector[0, 48:].tolist() == [512, 640, 3, 4, 512, 640]
    torch.testing.assert_close(model.encode(["a cat"], TextOptions(clip_skip=3)).cross, cond.cross)
    skipped = model.encode(["a cat"], TextOptions(clip_skip=1, clip_l_skip=True)).cross
    torch.testing.assert_close(skipped, torch.cat([small[-1], large[-2]], dim=-1))


@torch.inference_mode()
def test_weights_and_chunks_reach_both(loaded: tuple[SDXL, Parts]) -> None:
    model, _ = loaded
    plain = model.encode(["a red cat"], TextOptions(emphasis="No norm"))
    strong = model.encode(["a (red:1.5) cat"], TextOptions(emphasis="No norm"))
    torch.testing.assert_close(strong.cross[:, 2], plain.cross[:, 2] * 1.5)
    torch.testing.assert_close(strong.cross[:, 1], plain.cross[:, 1])
    original = model.encode(["a (red:1.5) cat"], TextOptions())
    for part in (slice(0, 32), slice(32, 64)):  # each encoder keeps its own mean
        torch.testing.assert_close(original.cross[..., part].mean(), plain.cross[..., part].mean())
    long = model.encode(["a red cat" + " cat" * 80], TextOptions())
    first = model.encode(["a red cat" + " cat" * 72], TextOptions())
    assert long.cross.shape == (1, 154, 64)
    assert long.vector is not None and first.vector is not None
    torch.testing.assert_close(long.vector, first.vector)  # the pooled text is of the first chunk


@torch.inference_mode()
def test_no_negative_prompt_is_zeros(loaded: tuple[SDXL, Parts]) -> None:
    model, _ = loaded
    empty = model.encode([""], TextOptions(), negative=True)
    assert empty.vector is not None
    assert not empty.cross.any() and not empty.vector[:, :48].any() and empty.vector[:, 48:].any()
    assert model.encode([""], TextOptions()).cross.any()
    assert model.encode(["bad"], TextOptions(), negative=True).cross.any()


@torch.inference_mode()
def test_the_refiner_has_one_encoder_and_a_score(tmp_path: Path) -> None:
    model = read_model(save_tiny_of(tmp_path / "refiner.safetensors", "refiner", tiny_parts("refiner")), FP32)
    assert model.family == "SDXL refiner"
    assert set(model.components) == {"unet", "vae", "text_encoder_2"}
    options = TextOptions(width=640, height=512, aesthetic_score=7, negative_aesthetic_score=2)
    for negative, score in ((False, 7), (True, 2)):
        vector = model.encode(["a cat"], options, negative).vector
        assert vector is not None
        assert vector[0, 48:].tolist() == [512, 640, 0, 0, score]


def test_another_kind_of_noise_is_refused(tmp_path: Path) -> None:
    more = {"edm_vpred.sigma_max": torch.ones(1)}
    path = save_tiny_of(tmp_path / "cosxl.safetensors", "sdxl", tiny_parts("sdxl"), **more)
    with pytest.raises(ModelFileError, match=r"cosxl\.safetensors: it is of the kind of CosXL"):
        read_model(path, FP32)


def test_an_unet_of_another_width_is_refused(tmp_path: Path) -> None:
    base, refiner = tiny_parts("sdxl"), tiny_parts("refiner")
    mixed = Parts(refiner.unet, base.vae, base.text_encoder, base.text_encoder_2)
    path = save_tiny_of(tmp_path / "mixed.safetensors", "sdxl", mixed)
    with pytest.raises(ModelFileError, match=r"mixed\.safetensors: its UNet wants 1328 numbers .* give 1584"):
        read_model(path, FP32)
