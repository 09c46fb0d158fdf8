"""What the dialog of styles does to the file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.app import App
from modules.prompt.styles import Style, StylesError
from modules.web.styles import change, written_in
from tests.jobs.scene import make_app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = make_app(tmp_path)
    yield app
    app.store.close()


def test_a_style_is_saved_changed_and_deleted(app: App) -> None:
    change(app, {"do": "save", "name": "shiny", "prompt": "{prompt}, <b>", "negative_prompt": "dull"})
    change(app, {"do": "save", "name": "other", "prompt": "x", "negative_prompt": ""})
    assert app.styles() == [Style("shiny", "{prompt}, <b>", "dull"), Style("other", "x")]
    change(app, {"do": "save", "name": "shiny", "prompt": "y"})
    assert app.styles()[0] == Style("shiny", "y")
    change(app, {"do": "delete", "name": "shiny"})
    assert app.styles() == [Style("other", "x")]
    change(app, {"do": "list"})
    assert app.styles() == [Style("other", "x")]


def test_a_style_needs_a_name_and_only_one_that_is_there_can_go(app: App) -> None:
    with pytest.raises(StylesError, match="needs a name"):
        change(app, {"do": "save", "name": " ", "prompt": "x"})
    with pytest.raises(StylesError, match="no style named 'gone'"):
        change(app, {"do": "delete", "name": "gone"})


def test_chosen_styles_are_written_into_both_prompts() -> None:
    known = [Style("shiny", "{prompt}, shiny", "dull"), Style("other", "x")]
    assert written_in(known, "cat", "", ["other", "gone", "shiny"]) == ("cat, x, shiny", "dull")
    with pytest.raises(StylesError, match="longer than"):
        written_in([Style("bomb", "{prompt}" * 1000)], "cat" * 1000, "", ["bomb"])
