"""Composition: `a cat AND a dog :0.7` is two prompts, each of which guides the picture with its weight. Knows nothing
of what is inside the parts."""

import re

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"\d+\.?|\d*\.\d+")


def compose(prompt: str) -> list[tuple[str, float]]:
    """At least one part. A part that ends in `:number` has that weight, also when there is no AND."""
    return [_weighed(part) for part in _AND.split(prompt)]


def _weighed(part: str) -> tuple[str, float]:
    text = part.rstrip()
    at = len(text)
    while at and (text[at - 1].isdecimal() or text[at - 1] == "."):
        at -= 1
    number = text[at:]
    if at and text[at - 1] in "+-":
        at -= 1
    before = text[:at].rstrip()
    if not _NUMBER.fullmatch(number) or not before.endswith(":"):
        return text, 1.0
    return before[:-1].rstrip(), float(text[at:])
