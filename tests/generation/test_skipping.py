"""Calls without the negative prompt."""

from modules.generation.skipping import Skipping


def test_nothing_is_skipped_unless_asked_for() -> None:
    skipping = Skipping(8)
    assert not any(skipping.skips(call, 0.1) for call in range(8))
    assert skipping.notes == {}


def test_early_calls() -> None:
    skipping = Skipping(8, early=0.25)
    assert [skipping.skips(call, 10.0) for call in range(5)] == [True, True, True, False, False]
    assert skipping.notes == {"Skip Early CFG": 0.25}


def test_every_other_call_at_low_noise() -> None:
    skipping = Skipping(6, below=3.0)
    assert not skipping.skips(1, 3.0)
    assert skipping.notes == {}
    assert [skipping.skips(call, 1.0) for call in range(2, 6)] == [False, True, False, True]
    assert skipping.notes == {"NGMS": 3.0}


def test_every_call_at_low_noise() -> None:
    skipping = Skipping(6, below=3.0, every=True)
    assert [skipping.skips(call, sigma) for call, sigma in enumerate((9.0, 2.0, 1.0))] == [False, True, True]
    assert skipping.notes == {"NGMS": 3.0, "NGMS all steps": True}


def test_early_goes_before_low_noise() -> None:
    skipping = Skipping(4, early=1.0, below=3.0)
    assert all(skipping.skips(call, 1.0) for call in range(5))
    assert skipping.notes == {"Skip Early CFG": 1.0}
