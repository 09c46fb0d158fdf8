"""The event bus: who gets what, and what a slow reader loses."""

import asyncio
import threading

import pytest

from modules.jobs.events import MOST_WAITING, Event, EventBus


def job_event(job: str, state: str = "queued", client: str = "a") -> Event:
    return Event("job", {"state": state}, job, client)


async def read_all(subscription) -> list[Event]:
    found = []
    while (event := await subscription.get(10)) is not None:
        found.append(event)
    return found


def test_each_reader_gets_its_own_jobs_and_what_is_for_all():
    async def run():
        bus = EventBus()
        with bus.subscribe(client="a") as a, bus.subscribe(job="2") as two, bus.subscribe() as everything:
            model = Event("model", {"state": "ready"})
            for event in (job_event("1"), job_event("2", client="b"), model):
                bus.publish(event)
            bus.close()
            assert await read_all(a) == [job_event("1"), model]
            assert await read_all(two) == [job_event("2", client="b")]
            assert len(await read_all(everything)) == 3

    asyncio.run(run())


def test_a_slow_reader_misses_steps_and_previews_but_no_state():
    async def run():
        bus = EventBus()
        with bus.subscribe(client="a") as slow:
            for step in range(1000):
                bus.publish(Event("progress", {"step": step}, "1", "a"))
                bus.publish(Event("preview", {"image": step}, "1", "a"))
                if step % 100 == 0:
                    bus.publish(job_event("1", f"state {step}"))
            bus.close()
            found = await read_all(slow)
        assert [e.data["state"] for e in found if e.type == "job"] == [f"state {n}" for n in range(0, 1000, 100)]
        assert [e.data for e in found if e.type == "progress"] == [{"step": 999}]
        assert [e.data for e in found if e.type == "preview"] == [{"image": 999}]

    asyncio.run(run())


def test_a_reader_that_has_stopped_is_closed_instead_of_filling_the_memory():
    async def run():
        bus = EventBus()
        with bus.subscribe(client="a") as dead:
            for number in range(MOST_WAITING + 1):
                bus.publish(job_event("1", str(number)))
            assert await read_all(dead) == []

    asyncio.run(run())


def test_events_of_other_threads_wake_the_reader_in_their_order():
    async def run():
        bus = EventBus()
        with bus.subscribe(client="a") as subscription:
            thread = threading.Thread(target=lambda: [bus.publish(job_event("1", str(n))) for n in range(500)])
            thread.start()
            found = [(await subscription.get(10)).data["state"] for _ in range(500)]
            thread.join()
        assert found == [str(number) for number in range(500)]

    asyncio.run(run())


def test_waiting_ends_with_a_timeout_and_a_closed_bus_takes_no_new_reader():
    async def run():
        bus = EventBus()
        with bus.subscribe() as subscription:
            with pytest.raises(TimeoutError):
                await subscription.get(0.01)
        bus.close()
        with bus.subscribe() as late:
            assert await late.get(10) is None
        assert not bus.listening("1", "a")

    asyncio.run(run())
