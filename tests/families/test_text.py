"""Groups of texts through the text encoder."""

import pytest
import torch

from modules.families import text as text_module
from modules.families.family import TextOptions
from modules.families.sd1 import SD1
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

OPTIONS = TextOptions(emphasis="No norm")


@torch.inference_mode()
def test_equal_chunks_are_read_once(tiny_model: SD1) -> None:
    encoder, sizes = tiny_model.encoder, list[int]()
    hook = encoder.network.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        found = encoder.encode(["a cat", "(a dog:1.2)", "a cat", "(a cat:1.2)", "", "cat " * 80], OPTIONS)
    finally:
        hook.remove()
    assert sizes == [4, 2]  # cat, dog, nothing, cats; nothing, more cats
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[3, 1:3], found[0, 1:3] * 1.2)
    torch.testing.assert_close(found[1:2, :77], encoder.encode(["(a dog:1.2)"], OPTIONS))


@torch.inference_mode()
def test_many_texts_are_read_in_portions(tiny_model: SD1, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"cat {i}" for i in range(9)]
    whole = tiny_model.encoder.encode(texts, TextOptions())
    monkeypatch.setattr(text_module, "READ_AT_ONCE", 2)
    torch.testing.assert_close(tiny_model.encoder.encode(texts, TextOptions()), whole)


@torch.inference_mode()
def test_old_emphasis_reads_brackets_as_in_2022(tiny_model: SD1) -> None:
    old = TextOptions(emphasis="No norm", old_emphasis=True)
    found, plain = tiny_model.encoder.encode(["a ((cat"], old), tiny_model.encoder.encode(["a cat"], OPTIONS)
    torch.testing.assert_close(found[:, 2], plain[:, 2] * 1.21)
    torch.testing.assert_close(found[:, 1], plain[:, 1])
    assert tiny_model.encoder.encode(["cat " * 80], old).shape[1] == 77
