"""What the page says, by language: locales/en.json and zh.json hold the same ids. Gradio gets the English words; the
page's script turns them into the chosen language in place, so that switching needs no reload. Knows nothing of
Gradio."""

import json
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")
FOLDER = Path(__file__).parent / "locales"


@cache
def texts(language: str) -> dict[str, str]:
    words: dict[str, str] = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return words


def text(id: str) -> str:
    """The English words for an id; an unknown id raises KeyError, so that a misspelt one is found at start."""
    return texts("en")[id]
