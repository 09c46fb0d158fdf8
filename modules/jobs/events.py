"""What happens, told to whoever listens. Published by any thread, read by asyncio. A listener that is too slow misses
previews and steps, never a state; one that has stopped reading is closed."""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

log = logging.getLogger(__name__)

# An older one of the same is worth nothing once a newer one is there.
LATEST_ONLY = ("progress", "preview", "merge", "download")
MOST_WAITING = 4096  # states that one listener may leave unread


@dataclass(frozen=True)
class Event:
    type: str
    data: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    client: str | None = None  # None: for everybody

    def as_message(self) -> dict[str, Any]:
        return {"type": self.type, **({"job": self.job} if self.job else {}), **self.data}


class Subscription:
    """One listener. `get` waits; None means that the bus is closed or that this listener was too slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: str | None, job: str | None):
        self.client, self.job = client, job
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Any, Event] = OrderedDict()
        self._numbers = count()
        self._ready = asyncio.Event()
        self._closed = False

    def wants(self, event: Event) -> bool:
        if self.job is not None:
            return event.job == self.job
        return event.client is None or self.client is None or event.client == self.client

    def put(self, event: Event) -> None:
        with self._lock:
            if self._closed:
                return
            same = (event.type, event.job, event.data.get("id"))
            key: Any = same if event.type in LATEST_ONLY else next(self._numbers)
            self._waiting.pop(key, None)
            self._waiting[key] = event
            if len(self._waiting) > MOST_WAITING:
                log.warning("a listener left %d events unread; it is closed and has to come again", MOST_WAITING)
                self._waiting.clear()
                self._closed = True
        self._wake()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._wake()

    async def get(self, timeout_s: float) -> Event | None:
        """The next event; raises TimeoutError when there is none for so long."""
        while True:
            with self._lock:
                if self._waiting:
                    return self._waiting.popitem(last=False)[1]
                if self._closed:
                    return None
                self._ready.clear()
            try:
                await asyncio.wait_for(self._ready.wait(), timeout_s)
            except asyncio.TimeoutError:
                raise TimeoutError from None  # Python 3.10 has two kinds of it

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("a listener's loop has ended before the listener")


class EventBus:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._closed = False

    def publish(self, event: Event) -> None:
        with self._lock:
            listeners = [one for one in self._subscriptions if one.wants(event)]
        for listener in listeners:
            listener.put(event)

    @contextmanager
    def subscribe(self, client: str | None = None, job: str | None = None) -> Iterator[Subscription]:
        """Events of one job, or of one client's jobs, or (neither given) all; only from inside a running event loop."""
        subscription = Subscription(asyncio.get_running_loop(), client, job)
        with self._lock:
            if self._closed:
                subscription.close()
            self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)

    def heard(self) -> bool:
        """Whether anybody listens at all."""
        with self._lock:
            return bool(self._subscriptions)

    def listening(self, job: str, client: str) -> bool:
        """Whether anybody would get this job's events."""
        probe = Event("probe", job=job, client=client)
        with self._lock:
            return any(one.wants(probe) for one in self._subscriptions)

    def close(self) -> None:
        """Ends every subscription, once it has read what waits for it."""
        with self._lock:
            self._closed = True
            subscriptions = list(self._subscriptions)
        for one in subscriptions:
            one.close()
