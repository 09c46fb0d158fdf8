"""The thread that makes the pictures: takes one job after the other, drives the engine, hands every picture over to be
saved, and tells how it goes. It alone imports torch, through the engine factory. Nothing that a job does ends it."""

import base64
import io
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from modules.generation.made import Picture
from modules.generation.plan import Plan, Texts, plan
from modules.generation.progress import Interrupted, Phase, Progress, Skipped, Stopped, Watch
from modules.generation.steps import round_steps
from modules.jobs.events import Event, EventBus
from modules.jobs.job import Job, State
from modules.jobs.keeper import Keeper
from modules.jobs.pace import Pace
from modules.jobs.queue import JobQueue, Run
from modules.jobs.saving import Saving
from modules.library.checkpoints import Checkpoint, CheckpointLibrary, fingerprint_of
from modules.library.header import ModelFileError
from modules.settings.schema import Settings

log = logging.getLogger(__name__)

STEPS_TOLD_A_SECOND = 20
PREVIEWS_A_SECOND = 5
PREVIEW_SHARE = 0.1  # of the time at most
POLLED_FOR_S = 10.0  # somebody who asked for progress is taken to be there for so long
A1111_EVERY = 10  # their "steps between previews"; ours then follow the clock alone
PAUSE_AFTER_TROUBLE_S = 5.0
FORGET_EVERY = 100  # jobs
IDLE_LOOK_S = 1.0  # how soon a checkpoint that the user has chosen is noticed


LoadWatch = Callable[[float], None]  # 0–1 of the bytes


class Engine(Protocol):
    """What the worker needs of the machine room."""

    def load(self, checkpoint: Checkpoint, watch: LoadWatch, settings: Settings | None = None) -> Any:
        """`watch` is told how much of it is there, and may raise to end the load. `settings`: of the job that it is
        for; None: those of now."""

    def unload(self) -> None: ...

    def generate(
        self, plan: Plan, checkpoint: Checkpoint, settings: Settings, watch: Watch
    ) -> Generator[Picture, None, None]: ...


EngineFactory = Callable[[], Engine]
Report = Callable[..., None]  # state and text of a `model` event, and how far it is (0–1) if that is known
Errand = Callable[[Callable[[], bool]], None]  # what it is given says whether the program ends


class NoEngine:
    """In place of an engine that could not be started."""

    def __init__(self, sentence: str):
        self._sentence = sentence

    def load(self, checkpoint: Checkpoint, watch: LoadWatch, settings: Settings | None = None) -> Any:
        raise JobFailed(self._sentence)

    def unload(self) -> None:
        pass

    def generate(
        self, plan: Plan, checkpoint: Checkpoint, settings: Settings, watch: Watch
    ) -> Generator[Picture, None, None]:
        raise JobFailed(self._sentence)


class JobFailed(Exception):
    """The job cannot be done; the sentence is for the user."""


@dataclass(frozen=True)
class Snapshot:
    """How far the running job is, for those who ask instead of listening."""

    job: Job
    phase: Phase
    batch: int
    batches: int
    step: int
    steps: int
    fraction: float  # 0–1 of the whole job
    eta_s: float | None
    elapsed_s: float
    skipped: bool
    interrupted: bool
    preview: bytes | None  # JPEG
    loaded: float | None = None  # 0–1 of the checkpoint, in the phase "loading"


class Worker:
    def __init__(
        self,
        queue: JobQueue,
        bus: EventBus,
        library: CheckpointLibrary,
        keeper: Keeper,
        engine_factory: EngineFactory,
        preload: Callable[[], Checkpoint] | None,  # what to load while there is nothing to do; None: nothing
        report: Report,
        texts: Callable[[Settings], Texts] = lambda settings: Texts(),
    ):
        self._texts = texts
        self._queue, self._bus, self._library, self._keeper = queue, bus, library, keeper
        self._engine_factory, self._preloads, self._report = engine_factory, preload, report
        self._preloaded: object = None  # path and fingerprint of what the engine was last asked to load
        self._trouble = ""  # why nothing could be loaded while there was nothing to do
        self._finished = 0
        self._thread = threading.Thread(target=self._main, name="worker", daemon=True)
        self._stopping = threading.Event()
        self._empty = False  # no model is wanted while there is nothing to do
        self._emptied = threading.Event()
        self._rethink = False  # the checkpoint that is being loaded while nothing runs may not be wanted any more
        self._polled = -POLLED_FOR_S
        self._errands: deque[Errand] = deque()
        self.snapshot: Snapshot | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends after the present step; the job that runs waits for the next start. False: still at it."""
        self._stopping.set()
        self._queue.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def unload(self, timeout_s: float) -> bool:
        """Gives the model's memory back as soon as nothing runs, until the next job or reload(). False: not yet."""
        self._emptied.clear()
        self._empty = self._rethink = True
        self._queue.wake()
        return self._emptied.wait(timeout_s)

    def reload(self) -> None:
        """The current checkpoint is loaded again, or another one that was chosen."""
        self._empty, self._rethink = False, True
        self._queue.wake()

    def between_jobs(self, errand: Errand) -> None:
        """Runs on this thread once no job runs, before those that wait."""
        self._errands.append(errand)
        self._queue.wake()

    def somebody_polls(self) -> None:
        """Previews are made only while they are seen: by listeners, or by those who call this from time to time."""
        self._polled = time.monotonic()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            engine: Engine = self._engine_factory()
        except Exception as error:  # a broken installation: the page says so, and so does every job
            log.exception("the engine could not be started")
            engine = NoEngine(f"the engine could not be started ({error}); see the log, and run launch.py install")
        self._preload(engine)
        while not self._stopping.is_set():
            try:
                if self._errands:
                    self._errands.popleft()(self._stopping.is_set)
                    continue
                run = self._queue.take(IDLE_LOOK_S)
                if run is not None:
                    self._run(engine, run)
                elif self._empty:
                    self._let_go(engine)
                elif not self._stopping.is_set():
                    self._preload(engine)
            except Exception:  # the database itself fails, on a full disk for example; jobs must go on once it is well
                log.exception("the queue could not be read or written; trying again in %.0f s", PAUSE_AFTER_TROUBLE_S)
                self._stopping.wait(PAUSE_AFTER_TROUBLE_S)

    def _preload(self, engine: Engine) -> None:
        """Nothing to do: load the checkpoint that the next job will most likely need. A failure is told once."""
        if self._preloads is None:
            self._report("ready", "the checkpoint is loaded when it is needed")
            return
        try:
            if self._rethink:
                self._rethink, self._preloaded = False, None
            checkpoint = as_it_is(self._preloads())
            if self._preloaded != (checkpoint.path, checkpoint.fingerprint):
                self._load(engine, checkpoint, partial(self._still_wanted, checkpoint))
        except Stopped:
            self._preloaded = None
        except Exception as error:
            if self._trouble != str(error):
                self._report("failed", _sentence(error))
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _still_wanted(self, checkpoint: Checkpoint, fraction: float) -> None:
        """While it is being loaded for nobody in particular: raises Stopped when another one was chosen meanwhile."""
        if self._stopping.is_set() or (self._rethink and (self._empty or self._another_than(checkpoint))):
            raise Stopped

    def _another_than(self, checkpoint: Checkpoint) -> bool:
        try:
            self._rethink = self._preloads is not None and self._preloads().path != checkpoint.path
            return self._rethink
        except ValueError:  # none can be chosen; that is told when this one is there
            return False

    def _let_go(self, engine: Engine) -> None:
        if self._emptied.is_set():
            return
        engine.unload()
        self._preloaded = None
        self._report("ready", "no checkpoint is loaded; it is loaded when it is needed")
        self._emptied.set()

    def _load(self, engine: Engine, checkpoint: Checkpoint, watch: LoadWatch, settings: Settings | None = None) -> None:
        self._report("loading", f"loading {checkpoint.model_name}, {checkpoint.size / 1e6:.0f} MB")
        try:
            engine.load(checkpoint, watch, settings)
        except (Interrupted, Stopped):
            self._report("ready", f"{checkpoint.model_name} was not loaded to the end; it is loaded when it is needed")
            raise
        finally:
            self._preloaded = (checkpoint.path, checkpoint.fingerprint)
        self._report("ready", checkpoint.title)

    def _run(self, engine: Engine, run: Run) -> None:
        """One job to its end; whatever happens is in its row."""
        state: State = "failed"
        error: str | None = None
        try:
            state = self._make(engine, run)
        except Stopped:
            self._queue.put_back(run)
            return
        except Exception as problem:
            error = _sentence(problem)
        finally:
            self.snapshot = None
        self._finish(run, state, error)

    def _finish(self, run: Run, state: State, error: str | None) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.finish(run, state, error)
                self._finished += 1
                if self._finished % FORGET_EVERY == 0:
                    self._keeper.forget_old()
                return
            except sqlite3.Error:  # a full disk: the row has to be right before the next job is taken
                log.exception("job %s is %s, but that could not be written; trying again", run.job.id, state)
                self._stopping.wait(PAUSE_AFTER_TROUBLE_S)

    def _make(self, engine: Engine, run: Run) -> State:
        job = run.job
        settings = Settings().with_overrides(job.settings)
        teller = Teller(self, run, settings)
        teller.tell(Progress("loading", batches=job.request.batch_count, steps=teller.steps), 0)
        try:
            checkpoint = self._checkpoint_of(job, teller)
            self._load_for(job, engine, checkpoint, teller, settings)
        except Interrupted:
            return self._outcome(run, cut=True)
        if run.ends:
            return self._outcome(run, cut=False)
        todo = plan(job.request, {image.index for image in job.images}, self._texts(settings))
        last_of_batch = {batch[-1].index for batch in todo.batches}
        cut, last = False, 0

        def keep(made: Picture) -> None:
            self._keeper.keep(run, made.developed(), checkpoint, settings)

        # Closed here and now: whatever a run has changed at a model is undone before another run sees it.
        pictures = engine.generate(todo, checkpoint, settings, teller.watch)
        # Before the pictures are waited for: the engine ends what it has not been asked for.
        with Saving(keep) as saving, closing(pictures):
            for made in pictures:
                cut, last = cut or (not made.complete and run.ends), made.plan.batch
                if made.complete or not run.cancel:
                    saving.hand_over(made)
                if made.index in last_of_batch:
                    run.skip = False  # it came too late for that batch, and does not mean the next
                    if run.ends or self._stopping.is_set():
                        break
            teller.tell_saving(last)
        return self._outcome(run, cut)

    def _load_for(self, job: Job, engine: Engine, checkpoint: Checkpoint, teller: "Teller", settings: Settings) -> None:
        self._empty = False
        try:
            self._load(engine, checkpoint, teller.loading, settings)
        except (Interrupted, Stopped):
            log.info("job %s was stopped while %s was being loaded", job.id, checkpoint.model_name)
            raise
        except Exception as error:
            self._report("failed", _sentence(error))
            raise

    def _outcome(self, run: Run, cut: bool) -> State:
        """How it ended: an interrupt that came when all was done has changed nothing."""
        request, made = run.job.request, len(run.job.images)
        if not cut and made == request.image_count:
            return "done"
        if run.ends:
            return "cancelled" if run.cancel else "interrupted"
        if self._stopping.is_set():
            raise Stopped
        if made:
            return "done"  # the others were skipped before their first step
        raise JobFailed("no picture was made: every batch was skipped before its first step")

    def _checkpoint_of(self, job: Job, teller: "Teller") -> Checkpoint:
        """The file that the job was accepted for, hashed; never another one. Interrupted and Stopped pass through."""
        model = job.model
        found = next((one for one in self._library.list() if one.name == model.name), None)
        if found is None:
            raise JobFailed(
                f"the checkpoint {model.name} is gone since the job was queued; "
                "put it back, or queue the job again with another one"
            )
        told = -1

        def hashing(done: int, total: int) -> None:
            nonlocal told
            if (percent := 100 * done // max(1, total)) > told:
                told = percent
                self._report("loading", f"reading {model.name} for its hash: {percent} %", percent / 100)
            teller.loading(None)

        try:
            found = self._library.hashed(found, hashing)
        finally:
            if told >= 0:
                self._report("ready", f"{model.name} is loaded when it is needed")
        if model.sha256:
            same = found.sha256 == model.sha256
        else:
            same = (found.size, found.mtime_ns) == (model.size, model.mtime_ns)
        if not same:
            raise JobFailed(f"the checkpoint {model.name} is another file than when the job was queued; queue it again")
        return found


class Teller:
    """Watches one run: stops it where the user wants, and tells the others how far it is."""

    def __init__(self, worker: Worker, run: Run, settings: Settings):
        self._worker, self._run = worker, run
        self._every = settings.show_progress_every_n_steps if settings.live_previews_enable else -1
        request = run.job.request
        self.steps = round_steps(request, settings.img2img_fix_steps)  # of a batch, until the engine knows better
        self._before = len(run.job.images) // request.round_size  # batches that an earlier run has finished
        self._batches = request.batch_count
        self._pace = Pace(self._batches * self.steps)
        self._latest = Progress("loading", batches=self._batches, steps=self.steps)
        self._started = time.monotonic()
        self._told: tuple[float, str, int] = (0.0, "", -1)  # when, phase, batch
        self._next_preview = 0.0
        self._preview: bytes | None = None

    def loading(self, fraction: float | None) -> None:
        """What a load calls at every tensor."""
        self.watch(Progress("loading", loaded=fraction))

    def watch(self, progress: Progress) -> None:
        """What the engine calls at every step."""
        if progress.phase == "loading":  # the refiner, perhaps, in the middle of a batch
            progress = replace(self._latest, phase="loading", loaded=progress.loaded, preview=None)
        run, self._latest = self._run, progress
        if progress.steps > self.steps:  # SD upscale has seen how many tiles there are
            self.steps, self._pace.total = progress.steps, self._batches * progress.steps
        if progress.phase in ("loading", "encoding", "sampling"):
            if self._worker._stopping.is_set():
                raise Stopped
            if run.ends:
                self.tell(progress, self._done(progress))
                raise Interrupted
            if run.skip and progress.phase == "sampling":
                run.skip = False
                self.tell(progress, self._done(progress))
                raise Skipped
        self.tell(progress, self._done(progress))

    def tell_saving(self, batch: int) -> None:
        """As far as the engine was when it gave the picture away: mostly the end of its batch."""
        progress = Progress("saving", batch - self._before, self._batches, self._latest.step, self.steps)
        self.tell(progress, self._done(progress))

    def _done(self, progress: Progress) -> int:
        """Steps of the whole job that are behind us."""
        batch = min(self._before + progress.batch, self._batches - 1)
        return batch * self.steps + min(progress.step, self.steps)

    def tell(self, progress: Progress, done: int) -> None:
        now = time.monotonic()
        if progress.phase == "sampling":
            self._pace.note(done, now)
        preview = self._glimpse(progress, now)
        batch = self._before + progress.batch
        snapshot = Snapshot(
            job=self._run.job,
            phase=progress.phase,
            batch=batch,
            batches=self._batches,
            step=progress.step,
            steps=progress.steps,
            fraction=self._pace.fraction(done),
            eta_s=self._pace.eta_s(now),
            elapsed_s=now - self._started,
            skipped=self._run.skip,
            interrupted=self._run.ends,
            preview=self._preview,
            loaded=progress.loaded,
        )
        self._worker.snapshot = snapshot
        when, phase, last_batch = self._told
        last_step = progress.phase == "sampling" and progress.step >= progress.steps
        news = (phase, last_batch) != (progress.phase, batch) or last_step
        if news or now - when >= 1 / STEPS_TOLD_A_SECOND:
            self._told = (now, progress.phase, batch)
            self._publish("progress", self._progress_data(snapshot))
        if preview is not None:
            self._publish("preview", preview)

    def _progress_data(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            "phase": snapshot.phase,
            "batch": snapshot.batch,
            "batches": snapshot.batches,
            "step": snapshot.step,
            "steps": snapshot.steps,
            "progress": round(snapshot.fraction, 4),
            "loaded": None if snapshot.loaded is None else round(snapshot.loaded, 4),
            "eta_s": None if snapshot.eta_s is None else round(snapshot.eta_s, 1),
            "elapsed_s": round(snapshot.elapsed_s, 1),
            "waiting": self._worker._queue.waiting(),
        }

    def _glimpse(self, progress: Progress, now: float) -> dict[str, Any] | None:
        """A preview, when one is due, affordable and seen."""
        if progress.preview is None or self._every < 0 or now < self._next_preview or progress.step >= progress.steps:
            return None
        if self._every not in (0, A1111_EVERY) and progress.step % self._every:
            return None
        job = self._run.job
        polled = now - self._worker._polled < POLLED_FOR_S
        if not polled and not self._worker._bus.listening(job.id, job.client):
            return None
        try:
            picture = progress.preview()
            self._preview = jpeg(picture)
        except Exception:  # a glimpse is never worth the picture
            log.exception("the preview of job %s failed; it goes on without", job.id)
            self._every = -1
            return None
        cost = time.monotonic() - now
        self._next_preview = now + max(1 / PREVIEWS_A_SECOND, cost / PREVIEW_SHARE)
        image = "data:image/jpeg;base64," + base64.b64encode(self._preview).decode("ascii")
        return {"image": image, "width": job.request.width, "height": job.request.height}

    def _publish(self, type: str, data: dict[str, Any]) -> None:
        job = self._run.job
        self._worker._bus.publish(Event(type, data, job.id, job.client))


def as_it_is(checkpoint: Checkpoint) -> Checkpoint:
    """With the present state of its file: it may have been replaced since the folder was looked through."""
    try:
        now = fingerprint_of(checkpoint.path)
    except OSError as error:
        raise ModelFileError(checkpoint.path, f"is not there any more ({error.strerror or error})") from None
    if now == checkpoint.fingerprint:
        return checkpoint
    return replace(checkpoint, fingerprint=now, sha256=None, body_sha256=None)


def jpeg(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _sentence(error: Exception) -> str:
    """What the user reads; a traceback goes to the log where the fault is ours."""
    if isinstance(error, JobFailed | ModelFileError):
        return str(error)
    if isinstance(error, ValueError):  # the engine's and the settings' own refusals
        log.warning("a job was refused: %s", error, exc_info=error)
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "alloc" in str(error).lower():
        log.error("out of memory", exc_info=error)
        return "there was not enough memory; ask for a smaller size or batch, or close other programs"
    if isinstance(error, OSError):
        log.error("a file could not be used", exc_info=error)
        return f"a file could not be read or written: {error.strerror or error}"
    log.error("a job failed", exc_info=error)
    return f"internal error ({type(error).__name__}); the log has the details"
