"""Fixtures and the order of all tests."""

import hypothesis
import pytest
from hypothesis import settings

from tests.golden import golden as golden

settings.register_profile("busy", deadline=None)  # a busy machine is no bug
settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Playwright keeps an event loop running on this thread: tests that need one of their own go first."""
    items.sort(key=lambda item: "e2e" in item.path.parts)


# The machine may be busy; what takes too long is seen in the whole run's time.
hypothesis.settings.register_profile("easel", deadline=None)
hypothesis.settings.load_profile("easel")
