from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.app import App
from tests.jobs.scene import PATIENCE_S, Painter, make_app


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """start(painter, *flags) -> a running App on the test's own folder; ended after the test."""
    apps: list[App] = []

    def begin(painter: Painter | None = None, *flags: str) -> App:
        app = make_app(tmp_path, painter, *flags)
        app.start()
        apps.append(app)
        return app

    yield begin
    for app in apps:
        assert app.stop(PATIENCE_S)
