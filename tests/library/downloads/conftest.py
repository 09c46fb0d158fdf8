from collections.abc import Iterator

import pytest

from tests.library.downloads.hub import Hub, hubs


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs() as (one,):
        yield one


@pytest.fixture
def storage() -> Iterator[Hub]:
    """Another host, to which the hub redirects."""
    with hubs() as (one,):
        yield one
