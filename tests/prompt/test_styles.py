"""styles.csv as A1111 writes it, and styles applied to prompts and found in them again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.styles import Style, StylesError, apply_styles, find_styles, read_styles, remove_style, write_styles

TEXT = st.text("abc {},", max_size=12)


@pytest.mark.parametrize(
    ("prompt", "styles", "result"),
    [
        ("cat", ["soft light"], "cat, soft light"),
        ("", ["soft light"], "soft light"),
        ("cat", [""], "cat"),
        ("cat", ["photo of {prompt}, 35mm"], "photo of cat, 35mm"),
        ("cat", ["{prompt} and {prompt}", "blue"], "cat and cat, blue"),
        (" cat ", [" soft "], "cat, soft"),
        ("cat", [], "cat"),
    ],
)
def test_styles_are_applied_in_turn(prompt: str, styles: list[str], result: str) -> None:
    assert apply_styles(prompt, styles) == result


@given(
    st.text("abc ", max_size=12), st.sampled_from(["soft light", "photo of {prompt}, 35mm", "{prompt}!", "a {prompt}"])
)
def test_a_style_can_be_taken_off_again(prompt: str, style: str) -> None:
    prompt = prompt.strip()
    assert remove_style(apply_styles(prompt, [style]), style) == prompt


def test_a_style_that_was_not_applied_is_not_found() -> None:
    assert remove_style("cat, soft", "soft light") is None
    assert remove_style("photo of cat", "photo of {prompt}, 35mm") is None
    assert remove_style("ab", "ab{prompt}b") is None


@given(st.permutations(range(3)), st.sampled_from(["cat", "a dog, small"]))
def test_the_styles_of_a_picture_are_found(order: list[int], plain: str) -> None:
    """In which order they were applied cannot always be told, but the one that is found gives the same prompts."""
    styles = [
        Style("photo", "photo of {prompt}", "drawing"),
        Style("soft", "soft light", ""),
        Style("big", "{prompt}!"),
    ]
    prompt = apply_styles(plain, [styles[i].prompt for i in order])
    negative = apply_styles("bad", [styles[i].negative_prompt for i in order])
    left, left_negative, names = find_styles(prompt, negative, [*styles, Style("none")])
    assert (left, left_negative, sorted(names)) == (plain, "bad", ["big", "photo", "soft"])
    found = [next(style for style in styles if style.name == name) for name in names]
    assert apply_styles(left, [style.prompt for style in found]) == prompt
    assert apply_styles(left_negative, [style.negative_prompt for style in found]) == negative


@given(st.lists(st.builds(Style, TEXT.filter(bool), TEXT, TEXT), unique_by=lambda style: style.name))
def test_files_come_back(tmp_path_factory: pytest.TempPathFactory, styles: list[Style]) -> None:
    file = tmp_path_factory.mktemp("styles") / "styles.csv"
    write_styles(file, styles)
    assert read_styles(file) == styles
    assert [path.name for path in file.parent.iterdir()] == ["styles.csv"]


def test_files_of_a1111_are_read(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    rows = ["name,prompt,negative_prompt", 'photo,"a {prompt}, ""35mm""\nsharp",bad', "short", "short,new,", ",x,y", ""]
    file.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert read_styles(file) == [Style("photo", 'a {prompt}, "35mm"\nsharp', "bad"), Style("short", "new")]
    file.write_text("name,text\nold,as it was\n")
    assert read_styles(file) == [Style("old", "as it was")]


def test_a_missing_file_has_no_styles(tmp_path: Path) -> None:
    assert read_styles(tmp_path / "styles.csv") == []


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a,b\n1,2\n"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "styles.csv"
    file.write_bytes(content)
    with pytest.raises(StylesError, match=r"styles\.csv"):
        read_styles(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    write_styles(file, [Style("a")])
    with pytest.raises(UnicodeEncodeError):
        write_styles(file, [Style("\ud800")])
    assert read_styles(file) == [Style("a")]
    assert [path.name for path in tmp_path.iterdir()] == ["styles.csv"]


def test_a_prompt_does_not_grow_beyond_all_measure():
    assert len(apply_styles("cat", ["{prompt} " * 1000])) == 4000
    with pytest.raises(StylesError, match="take fewer styles"):
        apply_styles("cat", ["{prompt} " * 1000] * 3)
