"""Textual inversion: a new word is known within its block, learns alone, and lies in the file as A1111 reads it."""

import torch
from torch.testing import assert_close

from modules.training.inversion import NewWord, embedding_file, known
from tools.starter.networks import TextSizes, make_text_encoder


def encoder():
    torch.manual_seed(0)
    return make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64)).eval().requires_grad_(False)


def hidden(text, ids: list[int]) -> torch.Tensor:
    return text(torch.tensor([ids])).last_hidden_state


def test_vectors_that_a_token_has_mean_the_same_as_the_token() -> None:
    text = encoder()
    table = text.get_input_embeddings()
    word = NewWord(table.weight[[320, 1125]], first=49408)
    wanted = hidden(text, [49406, 320, 1125, 2368, 49407])
    with known(table, word):
        found = hidden(text, [49406, *word.tokens(), 2368, 49407])
    assert_close(found, wanted)


def test_only_the_word_learns_and_nothing_stays_behind() -> None:
    text = encoder()
    table = text.get_input_embeddings()
    before = hidden(text, [49406, 320, 49407])
    word = NewWord(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), first=49408)
    with known(table, word):
        hidden(text, [49406, *word.tokens(), 49407])[0, -1].square().sum().backward()
    assert word.vectors.grad is not None and (word.vectors.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in text.parameters())
    assert torch.equal(hidden(text, [49406, 320, 49407]), before)
    assert not table._forward_hooks and not table._forward_pre_hooks


def test_the_file_has_one_table_of_vectors() -> None:
    word = NewWord(torch.ones(3, 32), first=49408)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in embedding_file(word).items()} == {
        "emb_params": (torch.Size([3, 32]), torch.float32)
    }
