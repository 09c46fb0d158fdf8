"""Prompt editing against what A1111 made of the same prompts, and against any text at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.schedule import MAX_DEPTH, Timeline, Until, schedule, text_at
from tests.prompt.test_attention import lines_run

CASES = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text(encoding="utf-8"))
TIMELINES = {
    "schedule_8": Timeline(8),
    "schedule_20": Timeline(20),
    "schedule_hires": Timeline.of_hires_pass(10, 20),
    "schedule_old": Timeline(20, old=True),
}
MARKS = [*"()[]\\:.|-+13 \nab", ":3]", ":0.5]", "[a:b:", "[a|b]"]
SYNTAX = st.lists(st.sampled_from(MARKS), max_size=40).map("".join)


@pytest.mark.parametrize("key", TIMELINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["prompt"][:40]))
def test_texts_are_those_of_a1111(case: dict[str, Any], key: str) -> None:
    assert [list(until) for until in schedule(case["prompt"], TIMELINES[key])] == case[key]


@given(st.one_of(SYNTAX, st.text()), st.integers(1, 150))
def test_any_text_parses_into_rising_steps(text: str, steps: int) -> None:
    found = schedule(text, Timeline(steps))
    assert found[-1].step == steps
    assert all(a.step < b.step for a, b in zip(found, found[1:], strict=False))


@given(st.text())
def test_text_without_square_brackets_stays_as_it_is(text: str) -> None:
    plain = text.replace("[", "").replace("]", "")
    assert schedule(plain, Timeline(20)) == [Until(20, plain)]


@given(st.text("ab ,", max_size=9), st.text("cd ,", max_size=9), st.integers(1, 19), st.text("ef ,", max_size=9))
def test_an_edit_shows_one_text_and_then_the_other(before: str, after: str, when: int, around: str) -> None:
    found = schedule(f"{around}[{before}:{after}:{when}]{around}", Timeline(20))
    assert found == [Until(when, around + before + around), Until(20, around + after + around)]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[a::3]", [(3, "a"), (8, "")]),
        ("[a|]b", [(i, "ab" if i % 2 else "b") for i in range(1, 9)]),
        ("[a:b:2.5e-1]", [(2, "a"), (8, "b")]),
        ("[a:b:99]", [(8, "a")]),
        ("[a:b:1e999]", [(8, "a")]),
        ("[a:b:-1e999]", [(8, "b")]),
        ("(x:[a:b:3])", [(3, "(x:a)"), (8, "(x:b)")]),
        ("[a:(b:1.3):3]", [(3, "a"), (8, "(b:1.3)")]),
        ("] [a:b:3] (", [(3, "] a ("), (8, "] b (")]),
        ("[x (y] [a:b:3]", [(3, "[x (y] a"), (8, "[x (y] b")]),
        ("[a:b\\:c:3]", [(3, "a"), (8, "b\\:c")]),
        ("[a\\|b:c:3]", [(3, "a\\|b"), (8, "c")]),
    ],
)
def test_edits(prompt: str, texts: list[tuple[int, str]]) -> None:
    assert schedule(prompt, Timeline(8)) == texts


@pytest.mark.parametrize("prompt", ["a | b [c:d:3]", "(a|b) [c:d:3]", "[a|b:c] [c:d:3]", "[c:d:3] \\", "[a|b"])
def test_what_the_grammar_has_no_rule_for_makes_all_of_it_text(prompt: str) -> None:
    assert schedule(prompt, Timeline(8)) == [Until(8, prompt)]


@pytest.mark.parametrize("prompt", ["[x [a:b] y:z:3]", "[(a:b:c):d:3]", "[x ] y:z:3] :)", "[a:b:c:3]", "[a:b:1.2.3]"])
def test_brackets_that_fit_no_rule_are_text_and_so_are_those_around(prompt: str) -> None:
    assert schedule(prompt, Timeline(8)) == [Until(8, prompt)]


def test_edits_nest_up_to_a_limit() -> None:
    def nested(depth: int) -> str:
        return "[" * depth + "a" + ":b:1]" * depth

    assert schedule(nested(MAX_DEPTH), Timeline(8)) == [Until(1, "a"), Until(8, "b")]
    [whole] = schedule(nested(MAX_DEPTH + 1), Timeline(8))[-1:]
    assert whole.text.startswith("[")


def test_the_text_of_a_step() -> None:
    texts = schedule("[a:b:3]", Timeline(8))
    assert [text_at(texts, step) for step in (0, 1, 3, 4, 8, 9)] == ["a", "a", "a", "b", "b", "a"]


@pytest.mark.parametrize(
    "unit", ["[", "[a:", "[a|", "[a:b:3]", "[a|b]", "([", "[]", ":3]", "[a:b", "\\[", ":", "|", "]", "()"]
)
def test_time_is_linear(unit: str) -> None:
    for text in ("{}", "[" * 70 + "{}" + ":x:3]" * 70):
        small, large = (lines_run(lambda t: schedule(t, Timeline(20)), text.format(unit * n)) for n in (400, 1600))
        assert large < 6 * small + 1000, f"{large} lines for 4 times the text that took {small}"
