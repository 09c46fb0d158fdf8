"""How many steps a pass takes: A1111's measured lists of noise levels have these lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.request import CURVES, GenerationRequest, Hires, Init, Loopback, SdUpscale
from modules.generation.steps import Span, round_steps, span, spans, strengths

PICTURE = ("a" * 64,)


@pytest.mark.parametrize(
    ("steps", "strength", "exact", "expected"),
    [
        (8, None, False, Span(8, 0)),
        (8, 0.6, False, Span(8, 3)),  # int(0.6 · 8) + 1 = 5
        (10, 0.9, False, Span(10, 0)),
        (10, 1.0, False, Span(10, 0)),
        (10, 0.0, False, Span(10, 9)),  # one step even so
        (8, 0.6, True, Span(13, 5)),
        (8, 0.7, True, Span(11, 3)),
        (12, 0.7, True, Span(17, 5)),
        (8, 0, True, Span(0, 0)),
    ],
)
def test_spans(steps: int, strength: float | None, exact: bool, expected: Span) -> None:
    assert span(steps, strength, exact) == expected


@given(st.integers(1, 150), st.floats(0, 1), st.booleans())
def test_never_more_than_there_are(steps: int, strength: float, exact: bool) -> None:
    found = span(steps, strength, exact)
    assert 0 <= found.first <= found.steps
    assert found.walked <= steps
    assert found.walked == steps or not exact or strength == 0


def test_both_passes_count() -> None:
    request = GenerationRequest(steps=20, hires=Hires(steps=10, denoising_strength=0.5))
    assert [one.walked for one in spans(request, fix_steps=False)] == [20, 10]
    request = GenerationRequest(steps=20, init=Init(images=PICTURE, denoising_strength=0.5))
    assert [one.walked for one in spans(request, fix_steps=False)] == [11]
    assert [one.walked for one in spans(request, fix_steps=True)] == [20]


def looping(**script: object) -> GenerationRequest:
    init = Init(images=PICTURE, denoising_strength=0.6, script=Loopback(**script))  # type: ignore[arg-type]
    return GenerationRequest(steps=8, init=init)


def test_a_linear_loop_goes_as_measured() -> None:
    assert strengths(looping(loops=2, final_denoising_strength=0.5)) == (0.6, 0.5)
    assert strengths(looping(loops=1, final_denoising_strength=0.1)) == (0.6,)


def test_curves_meet_at_their_ends_and_aggressive_is_ahead() -> None:
    aggressive, linear, lazy = (strengths(looping(loops=5, final_denoising_strength=0.2, curve=c)) for c in CURVES)
    for curve in (aggressive, linear, lazy):
        assert (curve[0], curve[-1]) == (0.6, pytest.approx(0.2)) and list(curve) == sorted(curve, reverse=True)
    assert all(a < b < c for a, b, c in zip(aggressive[1:-1], linear[1:-1], lazy[1:-1], strict=True))


def test_a_round_walks_all_of_its_loops() -> None:
    request = looping(loops=3, final_denoising_strength=0.2)  # 0.6, 0.4, 0.2
    assert round_steps(request, fix_steps=False) == 5 + 4 + 2
    assert round_steps(request, fix_steps=True) == 24
    tiled = GenerationRequest(steps=8, init=Init(images=PICTURE, denoising_strength=0.6, script=SdUpscale()))
    assert round_steps(tiled, fix_steps=False) == 5
