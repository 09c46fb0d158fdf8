"""Fixtures and the order of all tests."""

import pytest

from tests.golden import golden as golden


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Playwright keeps an event loop running on this thread: tests that need one of their own go first."""
    items.sort(key=lambda item: "e2e" in item.path.parts)
