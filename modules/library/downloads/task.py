"""One download: what the world sees of it, and how far it is."""

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from modules.library.downloads import parts
from modules.library.downloads.fetch import Watch
from modules.library.downloads.parts import Order
from modules.library.header import printable

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
TOLD_EVERY_S = 0.5
SPEED_OVER_S = 8.0


@dataclass(frozen=True)
class Download:
    """One of them, as it is now. `place`: "Lora/x.safetensors", for people."""

    id: str
    what: str
    source: str
    title: str
    kind: str
    place: str
    state: State
    received: int = 0  # bytes
    size: int | None = None
    speed: float = 0.0  # bytes a second
    seconds_left: float | None = None
    note: str = ""  # what goes on
    error: str | None = None
    asks_for: str = ""  # the host whose key is missing or refused
    created: float = 0.0
    revision: int = 0  # the larger, the newer: answers and events overtake each other

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Task:
    """One download at work. Its fields are written by its thread while it runs, and by nobody else then."""

    def __init__(self, order: Order, state: State, note: str = ""):
        self.order, self.state, self.note = order, state, note
        self.error: str | None = None
        self.asks_for = ""
        self.received = 0
        self.speed = 0.0
        self.seconds_left: float | None = None
        self.created = time.time()
        self.thread: threading.Thread | None = None
        self.stop_as: State | None = None
        self.drop_parts = False  # when it is cancelled
        self._watch: Watch | None = None
        self._places: deque[tuple[float, int]] = deque()
        self._told = 0.0
        self._revision = 0

    def holds(self, target: Path) -> bool:
        return self.order.target == target and self.state in ("queued", "running", "paused", "failed")

    def watch(self, watch: Watch) -> None:
        self._watch = watch
        self._places.clear()
        if self.stop_as:
            watch.stop()

    def ask_to_stop(self, state: State) -> None:
        self.stop_as = state
        if self._watch:
            self._watch.stop()

    def ended_as(self, state: State) -> None:
        self.state, self.note = state, ""
        if state == "cancelled" and self.drop_parts:
            parts.drop(self.order)

    def say(self, sentence: str) -> None:
        self.note = sentence

    def fail(self, sentence: str, asks_for: str = "") -> None:
        self.state, self.error, self.note, self.asks_for = "failed", sentence, "", asks_for
        self.seconds_left = None

    def moved(self, received: int) -> bool:
        """Whether it is time to tell."""
        now = time.monotonic()
        self.received = received
        if not self._places or now - self._places[-1][0] >= 0.1:
            self._places.append((now, received))
        while len(self._places) > 2 and now - self._places[0][0] > SPEED_OVER_S:
            self._places.popleft()
        since, at = self._places[0]
        if now > since:
            self.speed = max(0.0, (received - at) / (now - since))
        size = self.order.size
        self.seconds_left = (size - received) / self.speed if size is not None and self.speed > 0 else None
        self.note = ""
        return self._due(now)

    def checked(self, received: int) -> bool:
        self.received, self.note = received, "reading what is there already"
        return self._due(time.monotonic())

    def _due(self, now: float) -> bool:
        if now - self._told < TOLD_EVERY_S:
            return False
        self._told = now
        return True

    def snapshot(self) -> Download:
        order = self.order
        self._revision = max(self._revision + 1, time.time_ns() // 1000)
        return Download(
            id=order.id,
            what=order.what,
            source=order.source,
            title=printable(order.title),
            kind=order.kind,
            place=f"{order.target.parent.name}/{order.target.name}",
            state=self.state,
            received=self.received,
            size=order.size,
            speed=round(self.speed),
            seconds_left=self.seconds_left,
            note=self.note,
            error=self.error,
            asks_for=self.asks_for,
            created=self.created,
            revision=self._revision,
        )
