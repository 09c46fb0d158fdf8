"""Comments in prompts: from `#` to the end of the line."""

import re

_LINE = re.compile(r"(?:^|\n)#[^\n]*(?:\n|$)")  # goes with its line
_TAIL = re.compile(r"#[^\n]*(?:\n|$)")


def strip_comments(prompt: str) -> str:
    return _TAIL.sub("\n", _LINE.sub("\n", prompt))
