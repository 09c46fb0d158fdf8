"""The durable queue: what doors may do to jobs (submit, interrupt, skip, cancel), and what the worker reports back.
Every change is committed first and published then. Knows no model and no picture file."""

import hashlib
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from modules.generation.plan import settle
from modules.generation.request import GenerationRequest
from modules.jobs.events import Event, EventBus
from modules.jobs.job import Job, JobImage, ModelIdentity, State
from modules.jobs.store import JobStore, Recovery
from modules.library.checkpoints import Checkpoint, CheckpointLibrary, UnknownCheckpoint
from modules.library.header import ModelFileError
from modules.settings.schema import Settings, refuse_protected

log = logging.getLogger(__name__)

MOST_WAITING = 2000  # jobs
POSITIONS_TOLD = 100  # waiting jobs that hear of each step forward


class QueueFull(ValueError):
    """There are too many jobs waiting."""


class NoCheckpoint(ValueError):
    """The request names a checkpoint that is not there or is broken."""


class Run:
    """The job that runs now, and what the user wants of it. Dies with the run, so it can never reach the next job."""

    def __init__(self, job: Job):
        self.job = job
        self.interrupt = job.stop
        self.cancel = False  # as interrupt, but what is half-made is dropped
        self.skip = False  # the batch that is being sampled

    @property
    def ends(self) -> bool:
        return self.interrupt or self.cancel


class JobQueue:
    def __init__(self, store: JobStore, library: CheckpointLibrary, bus: EventBus):
        self._store, self._library, self._bus = store, library, bus
        self._changed = threading.Condition(threading.RLock())
        self._run: Run | None = None
        self._woken = False

    # --- the doors -----------------------------------------------------------------------------------------------

    def submit(
        self,
        request: GenerationRequest,
        settings: Settings,
        source: str,
        client: str,
        key: str | None = None,
    ) -> Job:
        """The job, committed. The same key with the same request gives the same job again; with another, KeyReused.

        Raises ValueError with a sentence when the request names what is not there or the queue is full."""
        fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest() if key is not None else None
        if key is not None and (known := self._store.with_key(key, fingerprint)):
            return known
        refuse_protected(request.overrides)
        effective = settings.with_overrides(request.overrides)
        wanted = request.checkpoint or request.overrides.get("sd_model_checkpoint")
        chosen = settings.sd_model_checkpoint
        checkpoint = choose_checkpoint(self._library, wanted) if wanted else checkpoint_in_use(self._library, chosen)[0]
        settled = settle(request, lambda name: choose_checkpoint(self._library, name).name if name else checkpoint.name)
        with self._changed:
            if self._store.count_waiting() >= MOST_WAITING:
                raise QueueFull(f"{MOST_WAITING} jobs are waiting already; try again when some are done")
            job, new = self._store.add(
                id=uuid.uuid4().hex,
                source=source,
                client=client,
                request=settled,
                settings=effective.overridden(),
                model=ModelIdentity(checkpoint.name, checkpoint.size, checkpoint.mtime_ns, checkpoint.sha256),
                key=key,
                key_hash=fingerprint,
            )
            if new:
                self._changed.notify_all()
        if new:
            self._tell(job)
        return job

    def interrupt(self, id: str) -> Job:
        """Ends the job within a step and keeps what there is. Waiting: cancelled. Ended: nothing happens."""
        return self._end(id, drop=False)

    def cancel(self, id: str) -> Job:
        """As interrupt, but the picture that is half-made is dropped."""
        return self._end(id, drop=True)

    def skip(self, id: str) -> Job:
        """Ends the batch that is being sampled, and goes on with the next. Not running: nothing happens."""
        with self._changed:
            job = self.get(id)
            if self._run and self._run.job.id == id:
                self._run.skip = True
            return job

    def _end(self, id: str, drop: bool) -> Job:
        with self._changed:
            job = self.get(id)
            if job.ended:
                return job
            if self._run is None or self._run.job.id != id:
                job = self._store.finish(job, "cancelled")
                self._changed.notify_all()
            else:
                self._store.ask_to_stop(job)
                self._run.interrupt, self._run.cancel = self._run.interrupt or not drop, self._run.cancel or drop
                return job
        self._tell(job)
        self._tell_positions()
        return job

    def get(self, id: str) -> Job:
        """Raises KeyError when there is no such job."""
        job = self._store.get(id)
        if job is None:
            raise KeyError(f"no job {id[:80]!r}")
        return job

    def of_client(self, client: str, limit: int = 50) -> list[Job]:
        """This client's jobs, the newest first."""
        return self._store.of_client(client, limit)

    def with_key(self, key: str) -> Job | None:
        return self._store.named(key)

    def tasks(self, client: str) -> list[tuple[str, str | None]]:
        """Id and key of this client's jobs that have not ended, in order."""
        return self._store.tasks(client)

    def unfinished(self, client: str | None = None) -> list[Job]:
        return self._store.unfinished(client)

    def waiting(self) -> int:
        return self._store.count_waiting()

    def position(self, job: Job) -> int | None:
        """0: it runs; 1: it is next; None: it has ended."""
        if job.ended:
            return None
        return 0 if job.state == "running" else 1 + self._store.count_waiting(before=job.sequence)

    def positions(self) -> dict[str, int]:
        """Of all waiting jobs at once, by id."""
        return {id: number for number, (id, _) in enumerate(self._store.waiting(), start=1)}

    @property
    def running(self) -> Run | None:
        return self._run

    # --- the worker ----------------------------------------------------------------------------------------------

    def take(self, timeout_s: float | None = None) -> Run | None:
        """The next job, marked as running; waits for one. None: woken, or the time is over."""
        with self._changed:
            if not self._woken and not self._store.count_waiting():
                self._changed.wait(timeout_s)
            if self._woken:
                self._woken = False
                return None
            job = self._store.take()
            if job is None:
                return None
            self._run = run = Run(job)
        self._tell(job)
        self._tell_positions()
        return run

    def wake(self) -> None:
        """Lets take() return without a job."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def finish(self, run: Run, state: State, error: str | None = None) -> Job:
        with self._changed:
            job = self._store.finish(run.job, state, error)
            self._run = None
        self._tell(job)
        return job

    def put_back(self, run: Run) -> None:
        """The program ends: the job waits for the next start."""
        with self._changed:
            self._store.put_back(run.job)
            self._run = None

    def intend(self, run: Run, image: JobImage, data: bytes) -> None:
        self._store.intend(run.job, image, data)

    def saved(self, run: Run, image: JobImage) -> Job:
        self._store.saved(run.job, image)
        run.job = self.get(run.job.id)
        return run.job

    def recover(self) -> Recovery:
        """At start, before the worker: settles what the last process left half-done."""
        return self._store.recover()

    def prune(self, forget: Callable[[str], None]) -> None:
        """Forgets the oldest finished jobs; `forget` is called with the id of each."""
        for id in self._store.prune():
            forget(id)

    def pictures(self) -> set[str]:
        """The ids of all input pictures that jobs name."""
        return self._store.pictures()

    def _tell(self, job: Job) -> None:
        self._bus.publish(Event("job", job_state(job, self.position(job)), job.id, job.client))

    def _tell_positions(self) -> None:
        for number, (id, client) in enumerate(self._store.waiting()[:POSITIONS_TOLD], start=1):
            if self._bus.listening(id, client):
                data = {"state": "queued", "position": number, "error": None, "images": 0}
                self._bus.publish(Event("job", data, id, client))


def job_state(job: Job, position: int | None) -> dict[str, Any]:
    """The fields of a `job` event."""
    return {"state": job.state, "position": position, "error": job.error, "images": len(job.images)}


def choose_checkpoint(library: CheckpointLibrary, wanted: str | None) -> Checkpoint:
    """The checkpoint of that title, name or hash; nothing wanted: the usual one."""
    if wanted:
        try:
            return library.find(wanted)
        except (UnknownCheckpoint, ModelFileError) as error:
            raise NoCheckpoint(str(error)) from error
    usual = library.usual()
    if usual is None:
        raise NoCheckpoint("there is no checkpoint; put a .safetensors file into models/Stable-diffusion and refresh")
    return usual


def checkpoint_in_use(library: CheckpointLibrary, chosen: str | None) -> tuple[Checkpoint, str]:
    """The checkpoint of requests that name none: the one that the settings name. Where that is gone or broken it is the
    usual one, as in A1111, and a sentence says so."""
    if chosen and (usual := library.usual()):
        try:
            return library.find(chosen), ""
        except (UnknownCheckpoint, ModelFileError) as error:
            why = error.why if isinstance(error, UnknownCheckpoint) else error
            said = f"The chosen checkpoint cannot be used: {why}. {usual.name} is used until another one is chosen."
            return usual, said
    return choose_checkpoint(library, chosen), ""
