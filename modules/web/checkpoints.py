"""The header's checkpoint choice, and what the page knows of a checkpoint before it is loaded: the size that it was
made for and words that it knows, both read from files beside or in it."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.library.header import ModelFileError, read_header
from modules.web.form import Form, sentence
from modules.web.parts import QUICK, icon_button
from modules.web.text import text

if TYPE_CHECKING:
    from modules.app import App
    from modules.library.checkpoints import Checkpoint

USUAL_SIZE = (512, 512)
MAX_WORDS_FILE = 64_000  # bytes


def checkpoint_choice(app: "App") -> tuple[gr.Dropdown, gr.Button]:
    titles, selected = choices(app)
    dropdown = gr.Dropdown(
        titles,
        value=selected,
        label=text("checkpoint"),
        elem_id="setting_sd_model_checkpoint",
        min_width=0,
        allow_custom_value=True,  # a title grows a hash meanwhile; the library knows both, and refuses all else
    )
    return dropdown, icon_button("refresh_checkpoints", "refresh", "refresh_sd_model_checkpoint", min_width=0)


def bind_checkpoint_choice(app: "App", form: Form, refresh: gr.Button, reply: gr.Button) -> None:
    size = [form.width, form.height]
    form.checkpoint.input(_chooser(app), [form.checkpoint, *size], [reply, *size], **QUICK)
    refresh.click(_refresher(app), None, [form.checkpoint], **QUICK)


def choices(app: "App") -> tuple[list[str], str | None]:
    """The titles of all checkpoints that can be used, and the one in use."""
    selected = _selected(app)
    return [checkpoint.title for checkpoint in app.library.usable()], selected.title if selected else None


def default_size(app: "App") -> tuple[int, int]:
    selected = _selected(app)
    return size_of(selected) if selected else USUAL_SIZE


def _selected(app: "App") -> "Checkpoint | None":
    try:
        return app.current_checkpoint()
    except ValueError:  # there is none, or the settings name one that is gone
        return next(iter(app.library.usable()), None)


def _chooser(app: "App") -> Callable[..., Any]:
    def choose(title: str, width: float, height: float) -> Any:
        """A size that nobody touched follows the checkpoint; one that somebody chose stays."""
        before = default_size(app)
        try:
            after = size_of(app.use_checkpoint(title))
        except ValueError as error:  # it is gone since the list was made
            return _problem(str(error)), gr.skip(), gr.skip()
        return gr.skip(), *(after if (width, height) == before else (gr.skip(), gr.skip()))

    return choose


def _problem(text: str) -> Any:
    return gr.update(value=json.dumps({"problems": [sentence(text, "checkpoint")]}))


def _refresher(app: "App") -> Callable[[], Any]:
    def refresh() -> Any:
        app.library.refresh()
        titles, selected = choices(app)
        return gr.update(choices=titles, value=selected)

    return refresh


def size_of(checkpoint: "Checkpoint") -> tuple[int, int]:
    """The size that the checkpoint was trained for, where its metadata says so."""
    return _size_in(checkpoint.path, checkpoint.mtime_ns)


@lru_cache(maxsize=4096)
def _size_in(path: Path, mtime_ns: int) -> tuple[int, int]:
    try:
        written = read_header(path).metadata.get("modelspec.resolution", "")
    except (ModelFileError, OSError):
        return USUAL_SIZE
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", written)
    if not found:
        return USUAL_SIZE
    width, height = (min(2048, max(64, int(side) // 8 * 8)) for side in found.groups())
    return width, height


def words_of(checkpoint: "Checkpoint") -> list[str]:
    """What `<name>.words.txt` beside a checkpoint lists, one a line: prompts that a small checkpoint was taught."""
    try:
        with checkpoint.path.with_suffix(".words.txt").open("rb") as file:
            written = file.read(MAX_WORDS_FILE).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in written.splitlines() if line.strip() and not line.startswith("#")]
