"""Both languages say the same things, and nothing on the page asks for words that are not there."""

import re
from pathlib import Path

import pytest

from modules.generation.request import GenerationRequest
from modules.web import text

WEB = Path(text.__file__).parent
PLACES = re.compile(r"\{\w+\}")


def test_the_languages_have_the_same_ids_and_places() -> None:
    english, chinese = (text.texts(language) for language in text.LANGUAGES)
    assert list(english) == list(chinese)
    for id, words in english.items():
        assert sorted(PLACES.findall(words)) == sorted(PLACES.findall(chinese[id])), id


def test_chinese_is_chinese() -> None:
    english, chinese = (text.texts(language) for language in text.LANGUAGES)
    same = {id for id in english if english[id] == chinese[id] and id != "language"}
    assert same == set()
    latin_only = {id for id, words in chinese.items() if not re.search(r"[一-鿿]", words)}
    assert latin_only <= {"language"}


def test_english_words_are_unambiguous() -> None:
    """The page recognises what Gradio renders by its English words."""
    shown = [words for id, words in text.texts("en").items() if "." not in id]
    assert len(shown) == len(set(shown))


def test_every_id_in_use_exists() -> None:
    used = set()
    for file in WEB.glob("html/*.html"):
        used |= set(re.findall(r'data-(?:text|name)="([^"]+)"', file.read_text("utf-8")))
    for file in WEB.glob("js/*.js"):
        used |= set(re.findall(r'say\("([^"]+)"', file.read_text("utf-8")))
    for file in WEB.glob("*.py"):
        used |= set(re.findall(r'text\("(\w+)"\)', file.read_text("utf-8")))
    assert len(used) > 60
    assert used <= set(text.texts("en"))


def test_every_field_has_a_label() -> None:
    inner = {"overrides", "save", "init", "use_networks"}
    assert set(GenerationRequest.model_fields) - inner <= set(text.texts("en"))


def test_unknown_ids_are_errors() -> None:
    with pytest.raises(KeyError):
        text.text("no such thing")
