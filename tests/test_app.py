"""The services of one process, where they need no worker."""

from pathlib import Path

import pytest

from modules.generation.request import GenerationRequest
from modules.jobs.queue import NoCheckpoint
from modules.prompt.styles import Style, write_styles
from tests.jobs.scene import checkpoint_file, make_app


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


def test_where_the_chosen_checkpoint_is_gone_the_usual_one_is_used_and_the_page_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "Stable-diffusion"
    for name in ("plain", "chosen"):
        checkpoint_file(folder / f"{name}.safetensors")
    app = make_app(tmp_path)
    app.use_checkpoint("chosen")
    assert app.current_checkpoint().model_name == "chosen" and app.problems == []
    (folder / "chosen.safetensors").unlink()
    app.library.refresh()
    assert app.current_checkpoint().model_name == "plain"
    assert app.problems == [
        "The chosen checkpoint cannot be used: there is no checkpoint 'chosen.safetensors'."
        " plain.safetensors is used until another one is chosen."
    ]
    request = GenerationRequest(prompt="x")
    settings = app.settings.current
    assert app.queue.submit(request, settings, "page", "me").request.checkpoint == "plain.safetensors"
    for named in ({"checkpoint": "chosen"}, {"overrides": {"sd_model_checkpoint": "chosen"}}):
        with pytest.raises(NoCheckpoint):
            app.queue.submit(request.model_copy(update=named), settings, "page", "me")
    app.settings.update({"sd_model_checkpoint": "plain"})  # by whatever door
    assert app.problems == []
    app.store.close()


def test_without_any_checkpoint_a_chosen_one_is_still_missed(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.settings.update({"sd_model_checkpoint": "gone"})
    for path in (tmp_path / "models" / "Stable-diffusion").glob("*"):
        path.unlink()
    app.library.refresh()
    with pytest.raises(NoCheckpoint, match="gone"):
        app.current_checkpoint()
    app.store.close()
