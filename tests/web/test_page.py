"""The page as it is built: where A1111's users and extensions look for its controls."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.app import App
from modules.web.form import Form, meant
from modules.web.page import build_page
from tests.jobs.scene import make_app

CONTROLS = Path(__file__).parents[3] / "shared" / "facts" / "ui_controls.tsv"
# What has no place here yet, and what is another thing here: pictures are no components (js/canvas.js), their tools are
# buttons of ours.
OTHERWISE = (
    "script",
    "override",
    "_edit_user_metadata",
    "xyz",
    "styles_edit",
    "edit_style",
    "img2img_batch_",
    "unused",
    "modelmerger_checkpoint_format",  # no pickles are written
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[Form]]]:
    app: App = make_app(tmp_path_factory.mktemp("page"))
    loops: list[asyncio.AbstractEventLoop] = []
    new = asyncio.new_event_loop
    with pytest.MonkeyPatch.context() as patch:  # Gradio makes loops for its locks, and leaves them open
        patch.setattr(asyncio, "new_event_loop", lambda: loops.append(new()) or loops[-1])
        yield build_page(app)
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()
    app.store.close()


def controls() -> list[tuple[str, str, str]]:
    if not CONTROLS.exists():
        pytest.skip(f"{CONTROLS} is not here")
    rows = [line.split("\t") for line in CONTROLS.read_text("utf-8").splitlines()[1:]]
    kinds = ("slider", "dropdown", "number", "radio", "checkbox")
    tabs = ("Generation", "Checkpoint Merger")
    return [
        (row[1], row[2], row[3])
        for row in rows
        if any(tab in row[0] for tab in tabs) and row[1] in kinds and row[3]
        if not any(part in row[3] for part in OTHERWISE)
    ]


def test_the_controls_have_a1111s_kinds_labels_and_ids(page: tuple[Any, list[Form]]) -> None:
    blocks, _ = page
    ours = {one.elem_id: one for one in blocks.blocks.values() if getattr(one, "elem_id", None)}
    missing = [id for _, _, id in controls() if id not in ours]
    assert missing == []
    others = [
        (id, kind, label)
        for kind, label, id in controls()
        if id in ours and (type(ours[id]).__name__.lower() != kind or ours[id].label != label)
    ]
    assert others == []
    assert len(controls()) > 50


def test_every_box_begins_with_what_a_request_may_have(page: tuple[Any, list[Form]]) -> None:
    _, forms = page
    for form in forms:
        assert len({one["id"] for one in form.described().values()}) == len(form.names)
        assert all(one["id"] for one in form.described().values())
        assert meant("steps", form.fields["steps"].value) == 20
