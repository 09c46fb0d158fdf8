"""Fixtures for all tests."""

from tests.golden import golden as golden
