"""Patterns that people type: found names, sentences for what is none, and an end for those that would never end."""

import pytest

from modules.runtime.matching import PatternError, matching

NAMES = ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.weight", "model_ema.decay"]


def test_a_pattern_is_found_anywhere_in_a_name() -> None:
    assert matching(r"decoder|^model_ema\.", NAMES) == {NAMES[1], NAMES[2]}
    assert matching(r"^decoder", NAMES) == frozenset()
    assert matching("", NAMES) == frozenset(NAMES)


def test_what_is_no_pattern_gets_a_sentence() -> None:
    with pytest.raises(PatternError, match=r"no regular expression: missing"):
        matching("(model", [])
    with pytest.raises(PatternError, match="1001 characters; at most 1000"):
        matching("a" * 1001, NAMES)


@pytest.mark.parametrize("pattern", [r"(?:(?:(?:x?){9999}){9999}){9999}", "(" * 500 + ")" * 500, "x{99999999999}"])
def test_patterns_that_are_too_much_get_a_sentence(pattern: str) -> None:
    with pytest.raises(PatternError, match="needs too much memory"):
        matching(pattern, NAMES)


def test_catastrophic_backtracking_is_told() -> None:
    with pytest.raises(PatternError, match="takes too long"):
        matching(r"^(\w+|\.|\w)+!", NAMES)
