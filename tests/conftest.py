"""Fixtures and the order of all tests."""

import pytest
from hypothesis import settings

from tests.golden import golden as golden

settings.register_profile("easel", deadline=None)  # a busy machine is no bug
settings.load_profile("easel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Playwright keeps an event loop running on this thread: tests that need one of their own go first."""
    items.sort(key=lambda item: "e2e" in item.path.parts)
