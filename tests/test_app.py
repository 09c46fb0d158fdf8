"""The services of one process, where they need no worker."""

from pathlib import Path

import pytest

from modules.prompt.styles import Style, write_styles
from tests.jobs.scene import make_app


def test_styles_come_from_all_their_files_and_the_later_one_wins(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_styles(one, [Style("a", "first"), Style("b")])
    write_styles(other, [Style("a", "second"), Style("c")])
    app = make_app(tmp_path, None, "--styles-file", str(one), "--styles-file", str(other))
    assert app.styles() == [Style("a", "second"), Style("b"), Style("c")]
    assert app.styles_file == one
    app.store.close()


def test_a_styles_file_that_cannot_be_read_is_said_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(tmp_path)
    assert app.styles_file == tmp_path / "styles.csv"
    assert app.styles() == []
    app.styles_file.write_text("no,such,columns\n1,2,3\n")
    assert app.styles() == []
    assert "styles.csv has no column 'name'" in caplog.text
    app.store.close()
