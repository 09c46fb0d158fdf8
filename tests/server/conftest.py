from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.server.api import create_api
from modules.server.gate import ASGIApp, Gate
from tests.jobs.scene import Painter, make_app
from tests.server.served import Served


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """serve(painter) -> the whole server behind its gate, with a painter in place of the engine."""
    served: list[Served] = []

    def begin(painter: Painter | None = None, asgi: ASGIApp | None = None, **gate: object) -> Served:
        if asgi is not None:
            one = Served(Gate(asgi, **gate))  # type: ignore[arg-type]
        else:
            app = make_app(tmp_path, painter)
            app.start()
            one = Served(Gate(create_api(app), **gate), app)  # type: ignore[arg-type]
        served.append(one)
        return one

    yield begin
    for one in served:
        one.close()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for requests that do not depend on what was before."""
    app = make_app(tmp_path_factory.mktemp("data"), Painter())
    app.start()
    one = Served(Gate(create_api(app)), app)
    yield one
    one.close()
