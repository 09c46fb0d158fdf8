"""When the refiner takes over."""

from collections.abc import Callable

LAST_TIMESTEP = 999


class Handover:
    """Called before every call of the model; calls `take_over` once, when the part `switch_at` (0–1) of the schedule
    is behind us: by noise level, which is how refiners are trained, or by `steps` of the sampler (None: not)."""

    def __init__(self, switch_at: float, steps: int | None, take_over: Callable[[], None]):
        self._switch_at, self._steps, self._take_over = switch_at, steps, take_over
        self._done = False

    def __call__(self, call: int, timestep: float) -> None:
        if self._done:
            return
        part = call / self._steps if self._steps else (LAST_TIMESTEP - round(timestep)) / (LAST_TIMESTEP + 1)
        if part >= self._switch_at:
            self._done = True
            self._take_over()
