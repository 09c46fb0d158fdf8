"""What must not hang, however hostile its input: told by a limit far above what it takes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

LIMIT_S = 5.0  # of the processor, not of the clock, which a busy machine stretches


@contextmanager
def ends(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Fails the test where the block works on for so long. It measures nothing: bench/ does. Text for it should be so
    long that a regular expression which takes quadratic time does not end: 50,000 characters took one 0.8 s, another
    10 s; 200,000 take sixteen times as long."""

    def stopped(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"it still ran after {limit_s} s of work")

    before = signal.signal(signal.SIGVTALRM, stopped)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
