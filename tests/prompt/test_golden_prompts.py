"""All measured prompts, also the long ones that tests/data leaves out."""

import json
from pathlib import Path

from modules.prompt.attention import parse_attention
from modules.prompt.tokens import Embeddings, Tokenizer, chunk, count
from tests.golden import golden as golden


def test_prompts(golden: Path) -> None:
    tokenizer = Tokenizer.from_folder(golden / "models" / "clip-tiny")
    embeddings = Embeddings({"tinyemb_st": 3, "tinyemb_pt": 2}, tokenizer)
    for case in json.loads((golden / "prompts" / "prompts.json").read_text(encoding="utf-8")):
        pieces = parse_attention(case["prompt"])
        assert [list(piece) for piece in pieces] == case["attention"], case["prompt"]
        found = chunk(pieces, tokenizer, embeddings=embeddings)
        for ours, theirs in zip(found, case["chunks"]["chunks"], strict=True):
            assert list(ours.tokens) == theirs["tokens"], case["prompt"]
            assert list(ours.weights) == theirs["multipliers"], case["prompt"]
            assert [list(embedding) for embedding in ours.embeddings] == theirs["fixes"], case["prompt"]
        assert list(count(pieces, tokenizer, embeddings=embeddings)) == case["lengths"], case["prompt"]
