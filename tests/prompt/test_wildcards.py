"""Wildcards: chosen by the seed, from files, within limits."""

from pathlib import Path

from modules.prompt.wildcards import MAX_CHOICES, expand_wildcards, lines_in

LISTS = {"colour": ["red", "green", "blue"], "thing": ["__colour__ ball", "__colour__ box"], "loop": ["x __loop__"]}


def lines(name: str) -> list[str]:
    return LISTS.get(name, [])


def test_the_seed_chooses() -> None:
    texts = [expand_wildcards("a __colour__ cat", lines, seed) for seed in range(40)]
    assert texts == [expand_wildcards("a __colour__ cat", lines, seed) for seed in range(40)]
    assert set(texts) == {"a red cat", "a green cat", "a blue cat"}


def test_every_wildcard_is_its_own_choice() -> None:
    found = {expand_wildcards("__colour____colour__", lines, seed) for seed in range(60)}
    assert len(found) == 9


def test_lines_may_name_wildcards() -> None:
    assert expand_wildcards("__thing__", lines, 1).split()[0] in LISTS["colour"]
    assert expand_wildcards("__loop__", lines, 1) == "x " * 8 + "__loop__"


def test_unknown_names_and_stray_underscores_stay() -> None:
    for text in ("__nothing__", "a __ b __ c", "__", "snake_case", ""):
        assert expand_wildcards(text, lines, 1) == text
    assert expand_wildcards("__no__colour__", lambda name: ["red"] if name == "colour" else [], 1) == "__nored"


def test_a_prompt_has_a_limit_of_choices() -> None:
    many = {"w": ["__w__" * 100]}
    text = expand_wildcards("__w__", lambda name: many.get(name, []), 1)
    assert text.count("__w__") == MAX_CHOICES * 99 + 1


def test_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "colour.txt").write_text("\ufeffred\n\n# a comment\n  blue \n", encoding="utf-8")
    (tmp_path.parent / "secret.txt").write_text("secret")
    read = lines_in(tmp_path)
    assert read("sub/colour") == ["red", "blue"]
    assert read("colour") == []
    assert read("../secret") == []
    assert read(str(tmp_path.parent / "secret")) == []
