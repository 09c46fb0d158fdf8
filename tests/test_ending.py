"""The guard against hanging, in a loop and inside of a regular expression."""

import re

import pytest

from tests.ending import ends


def test_what_ends_passes() -> None:
    with ends():
        assert re.search(r"\s+$", " x") is None


def test_a_loop_and_a_regular_expression_that_go_on_are_stopped() -> None:
    with pytest.raises(pytest.fail.Exception, match="still ran"), ends(0.05):
        while True:
            pass
    with pytest.raises(pytest.fail.Exception, match="still ran"), ends(0.5):
        re.search(r"a*b", "a" * 500_000)
