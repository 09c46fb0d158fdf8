"""Attention syntax: a prompt becomes pieces of text with weights. `(a)` strengthens, `[a]` weakens, `(a:1.3)` says how
much. Any text parses, in linear time; knows nothing of tokens or of what a weight does to a tensor."""

import re
from collections.abc import Iterator
from math import isfinite
from typing import Literal

Emphasis = Literal["None", "Ignore", "Original", "No norm"]
Piece = tuple[str, float]  # text and weight

BREAK = ("BREAK", -1.0)  # the piece that starts a new chunk
ROUND = 1.1  # weight of `(…)`
SQUARE = 1 / 1.1  # weight of `[…]`
MAX_DEPTH = 64  # open brackets; deeper ones are text
MAX_WEIGHT = 1e6

_SPECIAL = re.compile(r"[\\()\[\]:]")
_BREAK_WORD = re.compile(r"\bBREAK\b")
_DIGITS = re.compile(r"[.\d]*")
_SPACES = re.compile(r"\s*")


def pieces(text: str, emphasis: Emphasis) -> list[Piece]:
    """What is to be tokenized. With "None" the prompt has no syntax at all, not even BREAK."""
    return [(text, 1.0)] if emphasis == "None" else parse_attention(text)


def parse_attention(text: str) -> list[Piece]:
    """Pieces in order, neighbours of equal weight joined. BREAK comes as ("BREAK", -1.0); inside weighted brackets its
    weight is multiplied too, and so it is ordinary text there."""
    found = _Pieces()
    position = 0
    while match := _SPECIAL.search(text, position):
        found.text(text[position : match.start()])
        position = _special(text, match.start(), found)
    found.text(text[position:])
    return found.finish()


def _special(text: str, at: int, found: "_Pieces") -> int:
    """Takes what starts with the special character at `at`, and returns where to go on."""
    match text[at]:
        case "\\":
            escaped = text[at + 1 : at + 2]
            if escaped not in ("\\", "(", ")", "[", "]"):
                escaped = ""  # a backslash before anything else is dropped
            found.literal(escaped)
            return at + 1 + len(escaped)
        case "(" | "[" as bracket:
            found.open(bracket)
        case ":":
            weight, end = _weight(text, at)
            if weight is not None and found.can_close("("):
                found.close("(", weight)
                return end
            found.literal(":")
        case ")":
            found.close("(", ROUND)
        case _:
            found.close("[", SQUARE)
    return at + 1


def _weight(text: str, at: int) -> tuple[float | None, int]:
    """The number of `: 1.2 )` and the position after its bracket; None if something else follows the colon."""
    start = _skip(_SPACES, text, at + 1)
    end = _skip(_DIGITS, text, start + (text[start : start + 1] in ("+", "-")))
    after = _skip(_SPACES, text, end)
    if text[after : after + 1] != ")":
        return None, at + 1
    try:
        weight = float(text[start:end])
    except ValueError:  # no digits, or more than one point
        return None, at + 1
    return (weight, after + 1) if isfinite(weight) else (None, at + 1)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


class _Pieces:
    """The pieces so far, and where each open bracket began. Round and square brackets close independently of each
    other, so `(a [b) c]` is well formed."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.opened: dict[str, list[int]] = {"(": [], "[": []}
        self.too_deep = {"(": 0, "[": 0}  # open brackets beyond MAX_DEPTH: their closing partners are text too
        self.run: list[str] = []  # literal text since the last bracket: all of one weight, joined in `flush`

    def text(self, text: str) -> None:
        """Text in which the word BREAK means something."""
        parts = _split_at_breaks(text)
        for i, part in enumerate(parts):
            if i > 0:
                self.flush()
                self.add(*BREAK)
            if part or len(parts) > 1:
                self.literal(part)

    def literal(self, text: str) -> None:
        self.run.append(text)

    def open(self, bracket: str) -> None:
        if len(self.opened["("]) + len(self.opened["["]) >= MAX_DEPTH:
            self.too_deep[bracket] += 1
            self.literal(bracket)
        else:
            self.flush()
            self.opened[bracket].append(len(self.texts))

    def can_close(self, bracket: str) -> bool:
        return bool(self.opened[bracket]) and not self.too_deep[bracket]

    def close(self, bracket: str, weight: float) -> None:
        if not self.can_close(bracket):
            self.too_deep[bracket] = max(0, self.too_deep[bracket] - 1)
            self.literal(")" if bracket == "(" else "]")
            return
        self.flush()
        self.multiply(self.opened[bracket].pop(), weight)

    def multiply(self, start: int, weight: float) -> None:
        self.weights[start:] = [w * weight for w in self.weights[start:]]

    def flush(self) -> None:
        if self.run:
            self.add("".join(self.run), 1.0)
            self.run.clear()

    def add(self, text: str, weight: float) -> None:
        self.texts.append(text)
        self.weights.append(weight)

    def finish(self) -> list[Piece]:
        """Brackets that were never closed count to the end."""
        self.flush()
        for bracket, weight in (("(", ROUND), ("[", SQUARE)):
            for start in self.opened[bracket]:
                self.multiply(start, weight)
        return list(_joined(self.texts, [_limited(w) for w in self.weights])) or [("", 1.0)]


def _split_at_breaks(text: str) -> list[str]:
    """The parts between the words BREAK, without the white space around that word."""
    parts, end = [], 0
    for match in _BREAK_WORD.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
    parts.append(text[end:])
    last = len(parts) - 1
    return [
        part.strip() if 0 < i < last else part.rstrip() if i < last else part.lstrip() if i > 0 else part
        for i, part in enumerate(parts)
    ]


def _limited(weight: float) -> float:
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight)) if weight == weight else 1.0


def _joined(texts: list[str], weights: list[float]) -> Iterator[Piece]:
    run: list[str] = []
    for i, (text, weight) in enumerate(zip(texts, weights, strict=True)):
        run.append(text)
        if i + 1 == len(texts) or weights[i + 1] != weight:
            yield "".join(run), weight
            run = []
