"""Styles: named pieces of prompts in styles.csv (columns name, prompt, negative_prompt), as A1111 keeps them."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile

MAX_TEXT = 200_000  # characters of a prompt with its styles
PLACE = "{prompt}"  # where the prompt goes in a style; without it the style follows the prompt


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str = ""
    negative_prompt: str = ""


def apply_styles(prompt: str, styles: Iterable[str]) -> str:
    """The prompt inside each of the styles' texts in turn. Raises StylesError when it grows beyond all measure, as it
    does in a style that repeats it a thousand times."""
    for style in styles:
        if len(style) + max(1, style.count(PLACE)) * len(prompt) > MAX_TEXT:
            raise StylesError(f"the prompt with its styles is longer than {MAX_TEXT} characters; take fewer styles")
        prompt = _apply(prompt, style)
    return prompt


def _apply(prompt: str, style: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def remove_style(prompt: str, style: str) -> str | None:
    """The prompt that `style` was applied to; None if it was not."""
    if PLACE in style:
        left, _, right = style.partition(PLACE)
        fits = prompt.startswith(left) and prompt.endswith(right) and len(prompt) >= len(left) + len(right)
        return prompt[len(left) : len(prompt) - len(right)] if fits else None
    style, prompt = style.strip(), prompt.strip()
    if not style:
        return prompt
    if prompt == style:
        return ""
    return prompt.removesuffix(f", {style}") if prompt.endswith(f", {style}") else None


def find_styles(prompt: str, negative_prompt: str, styles: Sequence[Style]) -> tuple[str, str, list[str]]:
    """Which styles a prompt was made with, for a picture's parameters: both prompts without them, and their names in
    the order of application. Longer styles are tried first."""
    found: list[str] = []
    left = sorted(styles, key=lambda style: len(style.prompt) + len(style.negative_prompt), reverse=True)
    while match := next(
        (s for s in left if (s.prompt or s.negative_prompt) and _removes(prompt, negative_prompt, s)), None
    ):
        prompt, negative_prompt = _removes(prompt, negative_prompt, match) or (prompt, negative_prompt)
        left.remove(match)
        found.insert(0, match.name)
    return prompt, negative_prompt, found


def _removes(prompt: str, negative_prompt: str, style: Style) -> tuple[str, str] | None:
    one, other = remove_style(prompt, style.prompt), remove_style(negative_prompt, style.negative_prompt)
    return None if one is None or other is None else (one, other)


def read_styles(file: Path) -> list[Style]:
    """Empty where there is no file. A repeated name replaces the earlier one. Raises StylesError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StylesError(f"cannot read the styles in {file.name}: {error}") from error
    rows = csv.DictReader(StringIO(text, newline=""), restkey="rest", restval="")
    if rows.fieldnames and "name" not in rows.fieldnames:
        raise StylesError(f"{file.name} has no column 'name'; its first line is {','.join(rows.fieldnames)[:80]!r}")
    try:  # very old files call the column of prompts "text"
        styles = [
            Style(row["name"], row.get("prompt", row.get("text", "")), row.get("negative_prompt", "")) for row in rows
        ]
    except csv.Error as error:
        raise StylesError(f"{file.name} is not a table of comma-separated values: {error}") from error
    return list({style.name: style for style in styles if style.name}.values())


def write_styles(file: Path, styles: Iterable[Style]) -> None:
    """All at once or not at all."""
    table = StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(["name", "prompt", "negative_prompt"])
    rows.writerows([style.name, style.prompt, style.negative_prompt] for style in styles)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = NamedTemporaryFile("wb", dir=file.parent, prefix=f".{file.name}-", delete=False)
    try:
        with temporary:
            temporary.write(table.getvalue().encode("utf-8-sig"))
            temporary.flush()
            os.fsync(temporary.fileno())
        os.replace(temporary.name, file)
    except BaseException:
        os.unlink(temporary.name)
        raise


class StylesError(ValueError):
    """A styles file that cannot be used, in a sentence."""
