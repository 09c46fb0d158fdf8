"""What prompts were encoded to is used again by the jobs that follow, where nothing that counts has changed."""

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modules.families.family import TextOptions
from modules.families.networks.embeddings import EmbeddingStore
from modules.generation.prompts import Conditionings, Encoder
from modules.library.networks import NetworkLibrary
from tests.generation.test_families import Models, differ
from tests.tiny import save_tiny_of, tiny_parts

TE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


class Counted(Models):
    """Counts the texts that its models' text encoders read."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.texts: list[str] = []
        self.library_of_networks = NetworkLibrary(
            {"lora": [folder / "lora"], "embedding": [folder / "embedding"]}, folder / "networks.db"
        )
        networks = self.library_of_networks
        self.shelf = replace(self.shelf, networks=networks, embeddings=EmbeddingStore(networks))

    def loaded(self, name: str) -> Any:
        fresh = name not in self._loaded
        model = super().loaded(name)
        if fresh:
            model.encode = self.counted(model.encode)
        return model

    def counted(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def counting(texts: Any, options: TextOptions, negative: bool = False) -> Any:
            self.texts += texts
            return encode(texts, options, negative)

        return counting

    def encoded(self, **changes: Any) -> tuple[list[str], Any]:
        """The texts that a run had to encode, and its picture."""
        self.texts = []
        made = self.run(changes.pop("checkpoint", "sd1"), **changes)
        return self.texts, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd1", "sdxl"):
        save_tiny_of(folder / f"{kind}.safetensors", kind, tiny_parts(kind))  # type: ignore[arg-type]
    for name in ("VAE", "lora", "embedding"):
        (folder / name).mkdir()
    save_file({f"{TE}.diff": torch.randn(32, 32)}, folder / "lora" / "te.safetensors")
    save_file({f"{UNET}.diff": torch.randn(64, 32)}, folder / "lora" / "unet.safetensors")
    save_file({"emb_params": torch.randn(1, 32)}, folder / "embedding" / "zzz.safetensors")
    return folder


@pytest.fixture
def models(folder: Path) -> Counted:
    return Counted(folder)


def test_the_second_job_encodes_nothing_and_gives_the_same_picture(models: Counted) -> None:
    first, one = models.encoded(prompt="a [cat:dog:2] zzz", negative_prompt="bad")
    second, two = models.encoded(prompt="a [cat:dog:2] zzz", negative_prompt="bad")
    assert first and not second
    assert one.infotext == two.infotext and "TI hashes: " in one.infotext
    assert one.warnings == two.warnings
    assert not differ(one, two)
    off = {"persistent_cond_cache": False}
    third, three = models.encoded(prompt="a [cat:dog:2] zzz", negative_prompt="bad", settings=off)
    assert third == first and not differ(one, three)
    assert models.encoded(prompt="a [cat:dog:2] zzz", negative_prompt="worse")[0] == ["worse"]


@pytest.mark.parametrize(
    "settings", [{"CLIP_stop_at_last_layers": 2}, {"emphasis": "No norm"}, {"use_old_emphasis_implementation": True}]
)
def test_settings_that_count_for_the_text_encoder(models: Counted, settings: dict[str, Any]) -> None:
    models.encoded(prompt="a (cat:1.3)")
    assert models.encoded(prompt="a (cat:1.3)", settings=settings)[0]
    assert not models.encoded(prompt="a (cat:1.3)", settings=settings)[0]


def test_sizes_count_where_the_model_is_told_of_them(models: Counted) -> None:
    models.encoded(prompt="a cat")
    assert not models.encoded(prompt="a cat", width=128)[0]
    models.encoded(checkpoint="sdxl", prompt="a cat")
    assert not models.encoded(checkpoint="sdxl", prompt="a cat")[0]
    assert models.encoded(checkpoint="sdxl", prompt="a cat", width=128)[0]
    assert models.encoded(checkpoint="sdxl", prompt="a cat", settings={"sdxl_clip_l_skip": True})[0]


def test_loras_count_that_change_the_text_encoder(models: Counted, folder: Path) -> None:
    models.encoded(prompt="a cat")
    assert not models.encoded(prompt="a cat<lora:unet:1>")[0]
    assert models.encoded(prompt="a cat<lora:te:1>")[0]
    assert not models.encoded(prompt="a cat<lora:te:1>")[0]
    texts, half = models.encoded(prompt="a cat<lora:te:0.5>")
    assert texts
    path = folder / "lora" / "te.safetensors"
    save_file({f"{TE}.diff": torch.randn(32, 32)}, path)  # of the same size
    os.utime(path, ns=(1, 1))
    texts, other = models.encoded(prompt="a cat<lora:te:0.5>")
    assert texts and differ(half, other)
    assert not models.encoded(prompt="a cat")[0]


def test_an_embedding_that_was_replaced(models: Counted, folder: Path) -> None:
    _, before = models.encoded(prompt="zzz")
    assert not models.encoded(prompt="zzz")[0]
    path = folder / "embedding" / "zzz.safetensors"
    save_file({"emb_params": torch.randn(1, 32)}, path)
    os.utime(path, ns=(1, 1))
    models.library_of_networks.refresh("embedding")
    texts, after = models.encoded(prompt="zzz")
    assert texts == ["zzz"] and differ(before, after)


def test_what_is_kept_is_bounded_and_goes_with_its_model(models: Counted) -> None:
    model = models.loaded("sd1")
    one = model.encode(["a"], TextOptions()).nbytes
    kept = Conditionings(room=3 * one)
    encoder = Encoder(model, TextOptions(), kept)
    texts = list("abcd")
    models.texts = []
    made = [encoder.group([text]) for text in texts]
    assert kept.bytes_of(model) == 3 * one
    again = Encoder(model, TextOptions(), kept)
    assert [again.group([text]) is first for text, first in zip("bcd", made[1:], strict=True)] == [True] * 3
    assert models.texts == texts
    again.group(["a"])  # the longest unused was dropped
    assert models.texts == [*texts, "a"]
    models.shelf = None  # type: ignore[assignment]
    models._loaded.clear()
    del model, encoder, again
    gc.collect()
    assert not kept._kept
