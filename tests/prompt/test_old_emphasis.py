"""Weights as in 2022."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.old_emphasis import chunk_of_2022
from modules.prompt.tokens import ROOM, Embedding
from tests.prompt.test_tokens import EMBEDDINGS, TOKENIZER


def words(text: str, weighted: bool = True) -> list[tuple[str | None, float]]:
    found = chunk_of_2022(text, TOKENIZER, weighted)
    end = found.tokens.index(TOKENIZER.eos)
    return [(TOKENIZER.decode(t), round(w, 6)) for t, w in zip(found.tokens[1:end], found.weights[1:end], strict=True)]


def test_brackets_change_what_follows() -> None:
    assert words("a ((red)) [ball] x") == [
        ("a</w>", 1.0), ("red</w>", 1.21), ("ball</w>", round(1 / 1.1, 6)), ("x</w>", 1.0),
    ]  # fmt: skip


def test_brackets_that_never_close_last_to_the_end() -> None:
    assert [weight for _, weight in words("a (b c")] == [1.0, 1.1, 1.1]


def test_numbers_and_break_are_text() -> None:
    assert [word for word, _ in words("(a:1.5) BREAK b")] == ["a</w>", ":</w>", "1</w>", ".</w>", "5</w>"] + [
        "break</w>", "b</w>",
    ]  # fmt: skip


def test_a_token_of_several_signs_goes_whole() -> None:
    assert [word for word, _ in words("a :) b")] == ["a</w>", "b</w>"]
    assert words("a () b")[1][0] == "()</w>"  # whose two changes make none


def test_without_emphasis_brackets_are_text() -> None:
    assert words("(a)", weighted=False) == [("(</w>", 1.0), ("a</w>", 1.0), (")</w>", 1.0)]


def test_embeddings_keep_their_place() -> None:
    found = chunk_of_2022("a (tinyemb_st b", TOKENIZER, known=EMBEDDINGS)
    assert found.embeddings == (Embedding(1, "tinyemb_st"),)
    assert found.tokens[2:5] == (0, 0, 0)
    assert found.weights[2:6] == pytest.approx((1.1,) * 4)


@given(st.one_of(st.text(), st.text("()[] ab", max_size=400)))
def test_any_text_is_one_chunk(text: str) -> None:
    found = chunk_of_2022(text, TOKENIZER, known=EMBEDDINGS)
    assert len(found.tokens) == len(found.weights) == ROOM + 2
    assert TOKENIZER.eos in found.tokens
