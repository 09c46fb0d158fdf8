"""Tokens and chunks against what A1111 made of the same prompts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.attention import parse_attention
from modules.prompt.tokens import ROOM, Chunk, Embedding, Embeddings, Tokenizer, chunk, count

ROOT = Path(__file__).parents[2]
CASES = json.loads((ROOT / "tests" / "data" / "prompts.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_folder(ROOT / "modules" / "families" / "configs" / "sd1" / "tokenizer")
EMBEDDINGS = Embeddings({"tinyemb_st": 3, "tinyemb_pt": 2}, TOKENIZER)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["prompt"][:40]))
def test_chunks_and_counts_are_those_of_a1111(case: dict[str, Any]) -> None:
    pieces = parse_attention(case["prompt"])
    found = chunk(pieces, TOKENIZER, embeddings=EMBEDDINGS)
    assert found == [whole(wanted) for wanted in case["chunks"]]
    assert list(count(pieces, TOKENIZER, embeddings=EMBEDDINGS)) == case["count"]


def whole(case: dict[str, Any]) -> Chunk:
    """The cases leave out the padding."""
    tokens, weights = case["tokens"], case["weights"]
    return Chunk(
        tuple(tokens + [49407] * (77 - len(tokens))),
        tuple(weights + [1.0] * (77 - len(weights))),
        tuple(Embedding(*embedding) for embedding in case["embeddings"]),
    )


def test_the_vocabulary_is_that_of_clip() -> None:
    assert [TOKENIZER.bos, *TOKENIZER.encode("a photo of a cat"), TOKENIZER.eos] == [
        49406, 320, 1125, 539, 320, 2368, 49407,
    ]  # fmt: skip
    assert TOKENIZER.comma == 267
    assert TOKENIZER.pad == TOKENIZER.eos


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("“it’s”", '"it\'s"'),  # ftfy
        ("ｃａｔ！", "cat!"),
        ("fish &amp; chips", "fish & chips"),
        ("cafe\u0301", "café"),
        ("a\x07b", "ab"),
        ("A\u00a0 B\n", "a b"),
    ],
)
def test_text_is_mended_before_it_is_encoded(text: str, same_as: str) -> None:
    assert TOKENIZER.encode(text) == TOKENIZER.encode(same_as)


def test_no_spaces_are_put_around_ideographs() -> None:
    assert TOKENIZER.encode("日本語") != TOKENIZER.encode("日 本 語")


def test_the_names_of_special_tokens_are_those_tokens() -> None:
    assert TOKENIZER.encode("a <|endoftext|> b") == [320, 49407, 321]


@given(st.text(), st.integers(0, 74))
def test_every_chunk_has_77_tokens(text: str, backtrack: int) -> None:
    pieces = parse_attention(text)
    found = chunk(pieces, TOKENIZER, backtrack)
    assert found
    for part in found:
        assert len(part.tokens) == len(part.weights) == ROOM + 2
        assert part.tokens[0] == TOKENIZER.bos
        assert TOKENIZER.eos in part.tokens
    tokens, room = count(pieces, TOKENIZER, backtrack)
    assert tokens <= room == ROOM * len(found)


@given(st.lists(st.sampled_from(["cat", "dog,", ",", "red"]), max_size=400), st.integers(0, 74))
def test_no_token_is_lost_or_moved(words: list[str], backtrack: int) -> None:
    text = " ".join(words)
    found = chunk([(text, 1.2)], TOKENIZER, backtrack)
    kept = [t for part in found for t, w in zip(part.tokens, part.weights, strict=True) if w == 1.2]
    assert kept == TOKENIZER.encode(text)


def test_a_tail_without_comma_moves_no_further_than_backtracking_reaches() -> None:
    for at, moved in ((54, False), (55, True)):
        text = "cat " * at + ", " + "dog " * (80 - at)
        first, second = chunk([(text, 1.0)], TOKENIZER)
        assert (first.tokens.count(1929) == 0) is moved, f"comma at {at}"
        assert len(TOKENIZER.encode(text)) == 81


def test_an_embedding_moves_whole_with_the_tail_after_a_comma() -> None:
    text = "cat " * 65 + ", dog tinyemb_st cat cat cat cat cat cat"
    first, second = chunk([(text, 1.0)], TOKENIZER, embeddings=EMBEDDINGS)
    assert first.embeddings == ()
    assert second.embeddings == (Embedding(1, "tinyemb_st"),)
    assert second.tokens[1:6] == (1929, 0, 0, 0, 2368)


def test_of_two_embeddings_the_longer_name_wins() -> None:
    embeddings = Embeddings({"bad": 1, "bad hands": 2}, TOKENIZER)
    [found] = chunk([("bad hands bad", 1.0)], TOKENIZER, embeddings=embeddings)
    assert found.embeddings == (Embedding(0, "bad hands"), Embedding(2, "bad"))


def test_padding_follows_the_end_token() -> None:
    sd2 = Tokenizer.from_folder(ROOT / "modules" / "families" / "configs" / "sd1" / "tokenizer", pad=0)
    [found] = chunk([("cat", 1.0)], sd2)
    assert found.tokens == (49406, 2368, 49407, *[0] * 74)


def test_importing_brings_no_torch_and_no_transformers() -> None:
    code = "import sys, modules.prompt.tokens; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
