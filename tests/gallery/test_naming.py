import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modules.gallery.naming import NamingFacts, expand, next_number, safe_folders, safe_name, sanitize
from tests.ending import ends
from tests.golden import DATA

MEASURED = json.loads((DATA / "a1111" / "filenames.json").read_text("utf-8"))
PATTERNS = [case for case in MEASURED if "pattern" in case]
SANITIZED = next(case["sanitize"] for case in MEASURED if "sanitize" in case)
NOW = datetime(2026, 11, 22, 20, 53, 59, tzinfo=timezone.utc)
FACTS = NamingFacts(
    prompt='a red, circle: on <blue> "x"/y',
    negative_prompt="neg",
    seed=42,
    steps=8,
    cfg_scale=7.0,
    width=8,
    height=8,
    sampler="Euler a",
    schedule="Karras",
    model_name="tiny-sd1",
    model_hash="c4346f8673",
    batch_size=2,
    first_seed=42,
    last_seed=43,
    denoising_strength=0.6,
    styles=("s1", "s2"),
)


@pytest.mark.parametrize("case", PATTERNS, ids=[case["pattern"] for case in PATTERNS])
def test_patterns_as_measured(case: dict[str, str]):
    assert expand(case["pattern"], FACTS, NOW, Image.new("RGB", (8, 8), (1, 2, 3))) == case["result"]


@pytest.mark.parametrize("index", range(len(SANITIZED)))
def test_values_as_measured(index: int):
    before, after = SANITIZED[index]
    assert sanitize(before, replace_spaces=index % 2 == 0) == after


def test_moments():
    assert expand("[date]", FACTS, NOW) == "2026-11-22"
    assert expand("[datetime]", FACTS, NOW) == "20261122205359"
    assert expand("[datetime<%Y %H:%M><Asia/Tokyo>]", FACTS, NOW) == "2026 05_53"
    assert expand("[DateTime<%d><No/Where>]", FACTS, NOW) == "22"
    assert expand("[datetime<%99999999d>]", FACTS, NOW) == "20261122205359"


def test_what_is_alone_is_left_out_with_the_text_before_it():
    alone = replace(FACTS, batch_size=1, denoising_strength=None)
    assert expand("[seed]-[batch_number]-[generation_number]x[denoising]!", alone, NOW) == "42!"
    assert expand("[image_hash]", FACTS, NOW) == "[image_hash]"
    assert expand("[user]", replace(FACTS, user="a/b"), NOW) == "a_b"
    assert expand("[prompt_words]", FACTS, NOW, max_words=2) == "a red"
    assert expand("[prompt_words]", replace(FACTS, prompt="!!"), NOW) == "empty"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../../../tmp/x", "_._.._.._.._tmp_x"),
        ("C:\\x", "C__x"),
        ("con", "_con"),
        ("Con.txt", "_Con.txt"),
        ("nul .txt", "_nul .txt"),
        ("LPT1", "_LPT1"),
        ("console", "console"),
        ("x. ", "x"),
        ("..", ""),
        (" ", ""),
        (".htaccess", "_htaccess"),
        ("a\0b\x1b[0m", "a_b_[0m"),
        ("\u202egnp.exe", "gnp.exe"),
        ("\ud800x", "_x"),
        ("😀" * 300, "😀" * 50),
    ],
)
def test_names_are_legal_everywhere(text: str, name: str):
    assert safe_name(text) == name


@given(st.text(st.characters()), st.integers(20, 200))
def test_any_text_becomes_a_safe_name(text: str, limit: int):
    name = safe_name(text, limit)
    assert len(name.encode("utf-8")) <= limit
    assert not set(name) & set('<>:"/\\|?*') and all(ord(c) >= 32 for c in name)
    assert name == name.rstrip(" .") and not name.startswith(".")
    assert name.split(".")[0].upper() not in ("CON", "NUL", "AUX", "PRN", "COM1", "LPT9")
    assert safe_name(name, limit) == name


@given(st.text(st.characters()))
def test_any_prompt_stays_one_name(prompt: str):
    facts = replace(FACTS, prompt=prompt)
    for pattern in ("[prompt]", "[prompt_spaces]", "[prompt_words]", "[hasprompt<a|b>]"):
        assert "/" not in expand(pattern, facts, NOW) and "\\" not in expand(pattern, facts, NOW)


def test_hostile_patterns_end():
    long = replace(FACTS, prompt="a" * 100_000)
    for pattern in (
        "[" * 50_000,
        "[a" * 25_000,
        "[prompt]" * 10_000,
        "[datetime<" * 5_000 + "]",
        "[hasprompt" + "<a|b>" * 9_000 + "]",
    ):
        with ends():
            assert len(expand(pattern, long, NOW)) <= 4000
    for prompt in (" " * 100_000, "a " * 50_000, "!" * 100_000):
        with ends():
            assert len(expand("[prompt_words]-[prompt]", replace(FACTS, prompt=prompt), NOW)) < 400


def test_folders_stay_below_where_they_start():
    assert safe_folders("../../a/../b\\c//con/ x") == ("a", "b", "c", "_con", "x")
    assert safe_folders("/etc/passwd") == ("etc", "passwd") and safe_folders("..") == ()
    assert len(safe_folders("a/" * 100)) == 8


def test_numbers_go_on_after_the_highest(tmp_path: Path):
    assert next_number(tmp_path) == 0
    for name in ("00000-42.png", "00007-1.txt", "42.png", "x-99.png", "grid-0500.png", "2026-11-22", "123abc.png"):
        (tmp_path / name).write_bytes(b"")
    assert next_number(tmp_path) == 2027  # a file of that name counts, as in A1111
    (tmp_path / "2026-11-22").unlink()
    (tmp_path / "2026-11-22").mkdir()
    assert next_number(tmp_path) == 43  # a folder of a day does not
    assert next_number(tmp_path, "grid-") == 501
