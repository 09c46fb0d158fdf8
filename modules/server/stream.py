"""Server-sent events: what happens to jobs, as it happens. A reader gets a snapshot first, so that it has missed
nothing."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from modules.app import App
from modules.jobs.events import Event
from modules.jobs.job import Job, JobImage
from modules.jobs.queue import job_state

HEARTBEAT_S = 15.0  # proxies close what is silent for a minute
RETRY_MS = 1000


def events_of_client(app: App, client: str) -> StreamingResponse:
    """All that happens to this client's jobs and to the model; starts with its unfinished jobs."""

    def snapshot() -> Iterable[Event]:
        status = app.model_status
        yield Event("model", {"state": status.state, "text": status.text, "progress": status.progress})
        yield from app.merges.present()
        positions = app.queue.positions()
        for job in app.queue.unfinished(client):
            yield from present_state(app, job, positions.get(job.id, 0))

    return _stream(app, snapshot, client=client)


def events_of_job(app: App, job: Job) -> StreamingResponse:
    """One job's events from where it is now to its end."""

    def snapshot() -> Iterable[Event]:
        now = app.queue.get(job.id)
        return present_state(app, now, app.queue.position(now))

    return _stream(app, snapshot, job=job.id)


def present_state(app: App, job: Job, position: int | None) -> Iterable[Event]:
    """The events that bring a reader up to date: the pictures first, so that a `done` finds them."""
    for image in job.images:
        yield Event("image", image_data(app, job, image), job.id, job.client)
    yield Event("job", job_state(job, position), job.id, job.client)


def image_data(app: App, job: Job, image: JobImage) -> dict[str, Any]:
    return app.keeper.image_data(job, image)


def _stream(
    app: App, snapshot: Callable[[], Iterable[Event]], client: str | None = None, job: str | None = None
) -> StreamingResponse:
    async def messages() -> AsyncIterator[bytes]:
        with ExitStack() as stack:
            # Subscribed before the snapshot is taken: what happens in between comes twice, and nothing is missed.
            subscription = stack.enter_context(app.events.subscribe(client=client, job=job))
            yield f"retry: {RETRY_MS}\n\n".encode()
            for event in await run_in_threadpool(lambda: list(snapshot())):
                yield _message(event)
                if _last(event, job):
                    return
            while True:
                try:
                    news = await subscription.get(HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if news is None:
                    return
                yield _message(news)
                if _last(news, job):
                    return

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(messages(), media_type="text/event-stream", headers=headers)


def _last(event: Event, job: str | None) -> bool:
    return job is not None and event.type == "job" and event.data["position"] is None


def _message(event: Event) -> bytes:
    return f"data: {json.dumps(event.as_message(), ensure_ascii=False)}\n\n".encode()
