"""How far a run is and how long it will still take, from a clock that never jumps."""

from collections import deque

WINDOW = 32  # steps whose pace counts: long enough to be calm, short enough to notice that the machine got slower


class Pace:
    def __init__(self, total: int):
        self.total = max(total, 1)  # steps of the whole run
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def note(self, done: int, now: float) -> None:
        """`done` steps of the run are finished at `now`, in monotonic seconds."""
        if not self._seen or done > self._seen[-1][1]:
            self._seen.append((now, done))

    def fraction(self, done: int) -> float:
        return min(max(done / self.total, 0.0), 1.0)

    def eta_s(self, now: float) -> float | None:
        """Seconds to go; None while one step is all that is known."""
        if len(self._seen) < 2:
            return None
        (first_time, first), (last_time, last) = self._seen[0], self._seen[-1]
        seconds_a_step = (last_time - first_time) / (last - first)
        return max((self.total - last) * seconds_a_step - max(now - last_time, 0.0), 0.0)
