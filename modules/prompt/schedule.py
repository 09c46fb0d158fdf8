"""Prompt editing and alternation: what a prompt says at each sampling step. `[from:to:when]`, `[to:when]`,
`[from::when]` and `[a|b|c]` nest freely. Any text parses, in linear time; knows nothing of attention weights, AND or
tokens.

The rules are those of A1111's grammar, strict ones included: brackets, and all that enclose them, are ordinary text if
they hold what no rule allows, and a stray `|` makes the whole prompt ordinary text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DEPTH = 64  # of nesting; deeper brackets are text

_SPECIAL = re.compile(r"[\\()\[\]:|]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


class Until(NamedTuple):
    """The text that holds up to this step (1-based, inclusive)."""

    step: int
    text: str


@dataclass(frozen=True)
class Timeline:
    """How the number in `[from:to:when]` is read: an integer is a step, a number with a point a part of all steps."""

    steps: int  # of this pass
    first_step: int = 0  # integers count from here: the steps of the first pass, in a hires pass
    first_part: float = 0.0  # fractions count from here: 1.0 in a hires pass
    old: bool = False  # as before A1111 1.6: numbers below 1 are parts, others are steps

    @classmethod
    def of_hires_pass(cls, steps: int, base_steps: int, old: bool = False) -> "Timeline":
        """Both passes are one timeline, but in the old days, when the prompt ran again as in the first."""
        return cls(base_steps, old=True) if old else cls(steps, base_steps, 1.0)

    def step(self, when: str) -> int:
        """Up to which step `from` holds; 0 or less: never."""
        number = float(when)
        if self.old:
            found = number * self.steps if number < 1 else number
        elif "." in when:
            found = (number - self.first_part) * self.steps
        else:
            found = number - self.first_step
        return int(max(-1, min(self.steps, found)))


def schedule(prompt: str, timeline: Timeline) -> list[Until]:
    """The texts of all steps in order; the last holds until `timeline.steps`."""
    nodes = _parse(prompt)
    if nodes is None:
        return [Until(timeline.steps, prompt)]
    steps = {timeline.steps}
    _collect_steps(nodes, timeline, steps)
    return [Until(step, _text_at(nodes, step, timeline)) for step in sorted(steps)]


def index_at(texts: Sequence[Until], step: int) -> int:
    """Which of the texts holds at a step (1-based). Beyond the last step it is the first again, as in A1111: DPM
    adaptive calls the model more often than there are steps."""
    return next((i for i, until in enumerate(texts) if step <= until.step), 0)


def text_at(texts: Sequence[Until], step: int) -> str:
    return texts[index_at(texts, step)].text


@dataclass(frozen=True)
class _Edit:
    before: "list[_Node]"
    after: "list[_Node]"
    when: str


@dataclass(frozen=True)
class _Alternation:
    options: "list[list[_Node]]"


_Node = str | _Edit | _Alternation


def _collect_steps(nodes: list[_Node], timeline: Timeline, steps: set[int]) -> None:
    for node in nodes:
        if isinstance(node, _Edit):
            if (step := timeline.step(node.when)) >= 1:
                steps.add(step)
            _collect_steps(node.before, timeline, steps)
            _collect_steps(node.after, timeline, steps)
        elif isinstance(node, _Alternation):
            steps.update(range(1, timeline.steps + 1))
            for option in node.options:
                _collect_steps(option, timeline, steps)


def _text_at(nodes: list[_Node], step: int, timeline: Timeline) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, _Edit):
            parts.append(_text_at(node.before if step <= timeline.step(node.when) else node.after, step, timeline))
        elif isinstance(node, _Alternation):
            parts.append(_text_at(node.options[(step - 1) % len(node.options)], step, timeline))
        else:
            parts.append(node)
    return "".join(parts)


@dataclass
class _Open:
    """A bracket that is not closed yet, or, with the bracket "", the prompt itself."""

    bracket: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])  # between the separators
    separators: str = ""  # colons and bars
    depth: int = 0  # of the brackets inside

    def add(self, node: _Node) -> None:
        self.parts[-1].append(node)

    def separate(self, separator: str) -> None:
        self.separators += separator
        self.parts.append([])

    def as_text(self) -> list[_Node]:
        """Its content with bracket and separators as text; what is complete inside keeps its meaning."""
        nodes: list[_Node] = [self.bracket, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:], strict=True):
            nodes += [separator, *part]
        return nodes


class _Unparsable(Exception):
    """Holds what makes the whole prompt ordinary text."""


def _parse(prompt: str) -> list[_Node] | None:
    """None: the prompt is ordinary text."""
    stack = [_Open("")]
    position = 0
    try:
        while match := _SPECIAL.search(prompt, position):
            start = match.start()
            stack[-1].add(prompt[position:start])
            position = start + 1
            match prompt[start]:
                case "\\":
                    if prompt[position : position + 1] in ("", "\n"):
                        return None
                    position += 1
                    stack[-1].add(prompt[start:position])
                case "(" | "[" as bracket:
                    stack.append(_Open(bracket))
                case ":" | "|" as separator:
                    stack[-1].separate(separator)
                case bracket:
                    _close(stack, bracket)
        stack[-1].add(prompt[position:])
        _give_up(stack)
    except _Unparsable:
        return None
    return stack[0].as_text()


def _close(stack: list[_Open], bracket: str) -> None:
    """A closing bracket ends the innermost open one, if it is of its kind and holds what a rule allows. Otherwise
    neither can be anything but text, and no more can the brackets around."""
    top = stack[-1]
    fits = top.bracket == ("(" if bracket == ")" else "[") and top.depth < MAX_DEPTH
    nodes = (_round(top) if bracket == ")" else _square(top)) if fits else None
    if nodes is None:
        _give_up(stack)
        stack[0].add(bracket)
        return
    stack.pop()
    stack[-1].parts[-1] += nodes
    stack[-1].depth = max(stack[-1].depth, top.depth + 1)


def _give_up(stack: list[_Open]) -> None:
    """All open brackets become text of the prompt."""
    if any("|" in level.separators for level in stack):
        raise _Unparsable
    for level in stack[1:]:
        stack[0].parts[-1] += level.as_text()
    del stack[1:]


def _round(content: _Open) -> list[_Node] | None:
    """`(text)`, or with one colon `(text:1.2)`: all of it stays, for the attention syntax."""
    return [*content.as_text(), ")"] if content.separators in ("", ":") else None


def _square(content: _Open) -> list[_Node] | None:
    parts, separators = content.parts, content.separators
    if not separators:
        return [*content.as_text(), "]"]
    if separators == "|" * len(separators):
        return [_Alternation(parts)]
    if separators in (":", "::") and (when := _number(parts[-1])):
        return [_Edit(parts[0] if separators == "::" else [], parts[-2], when)]
    return None


def _number(nodes: list[_Node]) -> str | None:
    text = "".join(node if isinstance(node, str) else "|" for node in nodes)
    found = _NUMBER.fullmatch(text)
    return found[1] if found else None
