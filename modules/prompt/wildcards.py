"""Wildcards: `__colour__` becomes a line of colour.txt, chosen by the picture's seed."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

MAX_DEPTH = 8  # of wildcards in the lines of wildcards
MAX_CHOICES = 1000  # a prompt

_NAME = re.compile(r"[\w-]+(?:[/.][\w-]+)*")  # never leads out of a folder

Lines = Callable[[str], Sequence[str]]  # the lines of a wildcard; none: there is no such wildcard


def expand_wildcards(prompt: str, lines: Lines, seed: int) -> str:
    """The same seed gives the same text. An unknown name stays as it is."""
    random, choices_left = Random(seed), MAX_CHOICES

    def expand(text: str, depth: int) -> str:
        nonlocal choices_left
        rest = deque(text.split("__"))
        parts = [rest.popleft()]
        while rest:
            name = rest.popleft()
            known = lines(name) if rest and depth < MAX_DEPTH and choices_left else ()
            if known:
                choices_left -= 1
                parts += [expand(random.choice(known), depth + 1), rest.popleft()]
            else:
                parts += ["__", name]
        return "".join(parts)

    return expand(prompt, 0)


def lines_in(folder: Path) -> Lines:
    """Reads NAME.txt below the folder: one choice a line, without empty lines and comments (#)."""

    def read(name: str) -> list[str]:
        if not _NAME.fullmatch(name):
            return []
        try:
            text = (folder / f"{name}.txt").read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return []
        return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    return read
