"""All measured prompts, also the long ones that tests/data leaves out."""

import json
from pathlib import Path

from modules.prompt.attention import parse_attention
from modules.prompt.composition import compose
from modules.prompt.counter import count_tokens
from modules.prompt.networks import extract_networks
from modules.prompt.schedule import Timeline, schedule
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
            assert [[e.offset, e.name] for e in ours.embeddings] == theirs["fixes"], case["prompt"]
        assert list(count(pieces, tokenizer, embeddings=embeddings)) == case["lengths"], case["prompt"]


def test_timelines_parts_and_tags(golden: Path) -> None:
    tokenizer = Tokenizer.from_folder(golden / "models" / "clip-tiny")
    embeddings = Embeddings({"tinyemb_st": 3, "tinyemb_pt": 2}, tokenizer)
    timelines = {
        "schedule_steps8": Timeline(8),
        "schedule_steps20": Timeline(20),
        "schedule_steps20_hires10": Timeline.of_hires_pass(10, 20),
        "schedule_steps20_old": Timeline(20, old=True),
    }
    for case in json.loads((golden / "prompts" / "prompts.json").read_text(encoding="utf-8")):
        prompt = case["prompt"]
        for key, timeline in timelines.items():
            assert [list(until) for until in schedule(prompt, timeline)] == case[key], prompt
        parts, wanted = compose(prompt), case["multicond"]
        assert parts == [(wanted["flat"][index], weight) for index, weight in wanted["parts"][0]], prompt
        text, tags = extract_networks(prompt)
        assert text == case["extra_networks"]["text"], prompt
        assert len(tags) == sum(map(len, case["extra_networks"]["nets"].values())), prompt
        tokens, room = count_tokens(prompt, tokenizer, embeddings=embeddings)
        assert f">{tokens}/{room}<" in case["token_counter_text"], prompt
