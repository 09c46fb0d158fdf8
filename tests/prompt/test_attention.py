"""Attention syntax against what A1111 made of the same prompts, and against any text at all."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.attention import MAX_DEPTH, MAX_WEIGHT, parse_attention, pieces

CASES = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text(encoding="utf-8"))
MARKS = [*"()[]\\:.,-+19 \nab|<>é", "BREAK", " BREAK ", ":1.2)"]
SYNTAX = st.lists(st.sampled_from(MARKS), max_size=60).map("".join)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["prompt"][:40]))
def test_pieces_are_those_of_a1111(case: dict[str, Any]) -> None:
    assert [list(piece) for piece in parse_attention(case["prompt"])] == case["attention"]


@given(st.one_of(SYNTAX, st.text()))
def test_any_text_parses_and_neighbours_differ(text: str) -> None:
    found = parse_attention(text)
    assert found
    assert all(abs(weight) <= MAX_WEIGHT for _, weight in found)
    assert all(a[1] != b[1] for a, b in zip(found, found[1:], strict=False))


@given(st.text())
def test_text_without_syntax_stays_as_it_is(text: str) -> None:
    plain = "".join(c for c in text if c not in "()[]\\").replace("BREAK", "")
    assert parse_attention(plain) == [(plain, 1.0)]


@given(st.text())
def test_escaped_text_stays_as_it_is(text: str) -> None:
    plain = text.replace("BREAK", "").replace(":", "")
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in plain)
    assert parse_attention(escaped) == [(plain, 1.0)]


@given(st.lists(st.tuples(st.text("abc ,", min_size=1), st.integers(-300, 300).filter(bool)), min_size=1))
def test_weights_come_back(parts: list[tuple[str, int]]) -> None:
    """Written as `(text:1.25)`, read as (text, 1.25); equal neighbours are one piece."""
    wanted: list[tuple[str, float]] = []
    for text, hundredths in parts:
        weight = hundredths / 100
        if wanted and wanted[-1][1] == weight:
            wanted[-1] = (wanted[-1][0] + text, weight)
        else:
            wanted.append((text, weight))
    assert parse_attention("".join(f"({text}:{h / 100})" for text, h in parts)) == wanted


def test_round_and_square_brackets_close_independently() -> None:
    assert parse_attention("(a [b) c]") == [("a ", 1.1), ("b", 1 / 1.1 * 1.1), (" c", 1 / 1.1)]


def test_break_inside_weighted_brackets_is_text() -> None:
    assert parse_attention("(a BREAK b:1.3)") == [("a", 1.3), ("BREAK", -1.3), ("b", 1.3)]


@pytest.mark.parametrize("text", ["(a:1.2.3)", "(a:.)", "(a:--1)", f"(a:{'9' * 400})"])
def test_a_weight_that_is_no_number_is_text(text: str) -> None:
    assert parse_attention(text) == [(text[1:-1], 1.1)]


def test_brackets_deeper_than_the_limit_are_text() -> None:
    depth = MAX_DEPTH + 3
    [(text, weight)] = parse_attention("(" * depth + "a" + ")" * depth)
    assert text == "(((a)))"
    assert weight == pytest.approx(1.1**MAX_DEPTH)


def test_emphasis_none_has_no_syntax() -> None:
    assert pieces("(a:1.2) BREAK b", "None") == [("(a:1.2) BREAK b", 1.0)]
    assert pieces("(a:1.2)", "Ignore") == [("a", 1.2)]


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "(:",
        "(a",
        "a)",
        "(a)",
        ": ",
        ":1.2",
        ":1.2)",
        "\\",
        " ",
        "BREAK ",
        "(a:1.1)b",
        "((a:1.2",
        "\\(",
        "[(",
        "(a]",
    ],
)
def test_time_is_linear(unit: str) -> None:
    wrapped = "(" * 70 + "{}" + ")" * 70
    for shape in ("{}", wrapped):
        small, large = (lines_run(parse_attention, shape.format(unit * n)) for n in (400, 1600))
        assert large < 6 * small + 1000, f"{large} lines for 4 times the text that took {small}"


def lines_run(function: Callable[[str], object], text: str) -> int:
    """How many lines of Python it takes."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(text)
    finally:
        sys.settrace(before)
    return lines
