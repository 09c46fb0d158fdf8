"""AND, tags, comments and the token counter against what A1111 made of the same prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.comments import strip_comments
from modules.prompt.composition import compose
from modules.prompt.counter import count_tokens
from modules.prompt.networks import NetworkTag, extract_networks
from tests.prompt.test_attention import lines_run
from tests.prompt.test_tokens import EMBEDDINGS, TOKENIZER

CASES = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text(encoding="utf-8"))
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["prompt"][:40]))


@each_case
def test_parts_are_those_of_a1111(case: dict[str, Any]) -> None:
    found, wanted = compose(case["prompt"]), case["composition"]
    assert found == [(wanted["flat"][index], weight) for index, weight in wanted["parts"][0]]


@each_case
def test_tags_are_those_of_a1111(case: dict[str, Any]) -> None:
    text, tags = extract_networks(case["prompt"])
    assert text == case["networks"]["text"]
    wanted = [(kind, tag) for kind, found in case["networks"]["nets"].items() for tag in found]
    assert [(tag.kind, list(tag.items), list(tag.positional), tag.named) for tag in tags] == [
        (kind, tag["items"], tag["positional"], tag["named"]) for kind, tag in wanted
    ]


@each_case
def test_the_counter_shows_what_that_of_a1111_shows(case: dict[str, Any]) -> None:
    tokens, room = count_tokens(case["prompt"], TOKENIZER, embeddings=EMBEDDINGS)
    assert f"{tokens}/{room}" == case["counter"]


@given(st.lists(st.text("ab (:", max_size=9).map(lambda t: t.rstrip() + ")"), min_size=1), st.integers(-99, 99))
def test_weights_come_back(texts: list[str], tenths: int) -> None:
    prompt = "AND".join(f" {text} : {tenths / 10} " for text in texts)
    assert compose(prompt) == [(f" {text}", tenths / 10) for text in texts]


@pytest.mark.parametrize("text", ["a:1.2.3", "a:.", "a 1.2", "a:1 2", "a:+-1", "a:1e3"])
def test_what_is_no_weight_is_text(text: str) -> None:
    assert compose(text) == [(text, 1.0)]


@given(st.text(st.characters(exclude_characters="<>:")), st.lists(st.text("ab=1 <", min_size=1), min_size=1))
def test_tags_leave_the_text_around_them(text: str, items: list[str]) -> None:
    found, tags = extract_networks(f"{text}<lora:{':'.join(items)}>{text}")
    assert found == text * 2
    assert tags == [NetworkTag("lora", tuple(items))]


@pytest.mark.parametrize("text", ["<lora:>", "<lora:a", "<>", "< lora:a>", "<lo ra:a>", "lora:a>", "<:a>"])
def test_what_is_no_tag_is_text(text: str) -> None:
    assert extract_networks(text) == (text, [])


def test_an_empty_tag_does_not_hide_the_next() -> None:
    assert extract_networks("<lora:><lora:a>") == ("<lora:>", [NetworkTag("lora", ("a",))])


@pytest.mark.parametrize(
    ("prompt", "stripped"),
    [
        ("a red circle # hidden\non blue", "a red circle \non blue"),
        ("# all of it", "\n"),
        ("a\n# a line\nb", "a\nb"),
        ("no comment", "no comment"),
    ],
)
def test_comments(prompt: str, stripped: str) -> None:
    assert strip_comments(prompt) == stripped


@pytest.mark.parametrize("unit", ["<a:", "<lora:a>", "AND ", ":1", "1", ". ", "<" * 3])
def test_time_is_linear(unit: str) -> None:
    for function in (extract_networks, compose):
        small, large = (lines_run(function, unit * n) for n in (400, 1600))
        assert large < 6 * small + 1000
