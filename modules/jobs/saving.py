"""Keeps pictures beside the work: encoding and writing one takes a moment in which the next is being sampled."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

MOST_WAITING = 4  # pictures: what is made faster than it is written must not fill the memory

Picture = TypeVar("Picture")


class Saving(Generic[Picture]):
    """One thread that keeps the pictures of one run, in order. When its `with` ends, all of them are kept; what failed
    there is raised there, or where the next picture is handed over."""

    def __init__(self, keep: Callable[[Picture], None]):
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "saving")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> "Saving[Picture]":
        return self

    def hand_over(self, picture: Picture) -> None:
        """Waits only while too many are waiting already."""
        while self._under_way and (self._under_way[0].done() or len(self._under_way) >= MOST_WAITING):
            self._under_way.popleft().result()
        self._under_way.append(self._thread.submit(self._keep, picture))

    def wait(self) -> None:
        """Until all that was handed over is kept."""
        while self._under_way:
            self._under_way.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
            return
        for future in self._under_way:
            if problem := future.exception():
                log.error("a picture could not be kept", exc_info=problem)
