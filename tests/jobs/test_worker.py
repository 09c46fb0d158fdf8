"""Jobs on the real worker thread, queue, database and files; only the pictures are painted instead of sampled."""

import errno
import io
import os
import random
import threading

import pytest
from PIL import Image

from modules.generation.progress import Progress
from modules.generation.request import Init, Loopback, Mask, SdUpscale
from modules.jobs.queue import MOST_WAITING, NoCheckpoint, QueueFull
from modules.jobs.store import KeyReused
from modules.settings.schema import SettingError
from tests.jobs.scene import PATIENCE_S, GeneratedImage, Painter, Pause, checkpoint_file, make_app, submit, wait_for_end


def test_pictures_are_saved_with_their_infotext_and_seeds(start, tmp_path):
    app = start(Painter())
    job = wait_for_end(app, submit(app, seed=40, batch_size=2, batch_count=2).id)
    assert job.state == "done" and job.error is None
    assert [(image.index, image.seed) for image in job.images] == [(0, 40), (1, 41), (2, 42), (3, 43)]
    folder = tmp_path / "outputs" / "txt2img-images"
    assert all(image.kept and image.path.is_relative_to(folder) for image in job.images)
    assert [image.path.name[:5] for image in job.images] == ["00000", "00001", "00002", "00003"]
    assert Image.open(job.images[1].path).text["parameters"] == "a cat\nSeed: 41"
    assert sorted(path.name for path in folder.rglob("*")) == sorted(
        [job.images[0].path.parent.name, *(image.path.name for image in job.images)]
    )


def test_a_seed_that_was_left_open_is_settled_before_the_answer(start):
    app = start(Painter())
    job = submit(app, seed=-1)
    assert job.request.seed >= 0 and job.request.checkpoint == "plain.safetensors"
    assert wait_for_end(app, job.id).images[0].seed == job.request.seed


def test_jobs_run_in_the_order_in_which_they_were_accepted(start):
    pause = Pause()
    painter = Painter(pause)
    app = start(painter)
    jobs = [submit(app, seed=number * 100) for number in range(5)]
    pause.wait()
    assert [app.queue.position(app.queue.get(job.id)) for job in jobs] == [0, 1, 2, 3, 4]
    pause.go.set()
    for job in jobs:
        wait_for_end(app, job.id)
    assert [seed for seed, _ in painter.painted] == [0, 100, 200, 300, 400]
    assert app.queue.position(app.queue.get(jobs[0].id)) is None


def test_interrupt_keeps_what_there_is_and_does_not_touch_the_next_job(start):
    pause = Pause(at=2)
    app = start(Painter(pause))
    first, second = submit(app, steps=20, batch_count=3), submit(app)
    pause.wait()
    app.queue.interrupt(first.id)
    pause.go.set()
    first, second = wait_for_end(app, first.id), wait_for_end(app, second.id)
    assert (first.state, len(first.images)) == ("interrupted", 1)
    assert not first.images[0].kept and app.keeper.read(first, first.images[0]).startswith(b"\x89PNG")
    assert (second.state, len(second.images)) == ("done", 1)


def test_cancel_drops_the_picture_that_is_half_made(start):
    pause = Pause(at=2, index=1)
    app = start(Painter(pause))
    job = submit(app, steps=20, batch_count=3)
    pause.wait()
    app.queue.cancel(job.id)
    pause.go.set()
    job = wait_for_end(app, job.id)
    assert job.state == "cancelled" and [image.index for image in job.images] == [0]


def test_skip_goes_on_with_the_next_picture(start):
    pause = Pause(at=2, index=1)
    app = start(Painter(pause))
    job = submit(app, batch_count=3)
    pause.wait()
    app.queue.skip(job.id)
    pause.go.set()
    job = wait_for_end(app, job.id)
    assert job.state == "done" and [image.kept for image in job.images] == [True, False, True]


def test_incomplete_pictures_are_saved_where_the_settings_say_so(start, tmp_path):
    pause = Pause(at=2)
    app = start(Painter(pause))
    app.settings.update({"save_incomplete_images": True})
    job = submit(app, steps=20)
    pause.wait()
    app.queue.interrupt(job.id)
    pause.go.set()
    assert wait_for_end(app, job.id).images[0].kept


def test_every_wish_is_legal_in_every_state(start):
    pause = Pause()
    app = start(Painter(pause))
    first, waiting = submit(app), submit(app)
    pause.wait()
    assert app.queue.skip(waiting.id).state == "queued"
    assert app.queue.interrupt(waiting.id).state == "cancelled"
    assert [wish(waiting.id).state for wish in (app.queue.interrupt, app.queue.skip, app.queue.cancel)] == 3 * [
        "cancelled"
    ]
    pause.go.set()
    wait_for_end(app, first.id)
    assert [wish(first.id).state for wish in (app.queue.interrupt, app.queue.skip, app.queue.cancel)] == 3 * ["done"]
    assert wait_for_end(app, submit(app).id).state == "done"


def test_a_storm_of_wishes_leaves_the_next_job_clean(start):
    """Twenty clients skip, interrupt and cancel at random while jobs run; every job ends in a legal state."""
    app = start(Painter())
    jobs = [submit(app, steps=30, batch_count=2) for _ in range(10)]
    go = threading.Barrier(20)

    def storm(seed: int) -> None:
        dice = random.Random(seed)
        go.wait(PATIENCE_S)
        for _ in range(10):
            dice.choice([app.queue.skip, app.queue.interrupt, app.queue.cancel])(dice.choice(jobs).id)

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    ended = [wait_for_end(app, job.id) for job in jobs]
    assert all(job.state in ("done", "interrupted", "cancelled") for job in ended)
    assert all(job.images for job in ended if job.state == "done")
    clean = wait_for_end(app, submit(app).id)
    assert (clean.state, len(clean.images), clean.images[0].kept) == ("done", 1, True)


def test_a_stopped_program_goes_on_with_the_missing_pictures_only(tmp_path):
    pause = Pause(at=2, index=1)
    painter = Painter(pause)
    app = make_app(tmp_path, painter)
    app.start()
    job = submit(app, seed=7, batch_count=3)
    pause.wait()
    stopper = threading.Thread(target=app.stop, args=(PATIENCE_S,))
    stopper.start()
    while not app.worker._stopping.is_set():
        pass
    pause.go.set()
    stopper.join(PATIENCE_S)
    assert painter.painted == [(7, 0)]

    painter = Painter()
    app = make_app(tmp_path, painter)
    (waiting,) = app.queue.unfinished()
    assert (waiting.id, waiting.state, waiting.attempts, len(waiting.images)) == (job.id, "queued", 0, 1)
    app.start()
    job = wait_for_end(app, job.id)
    assert painter.painted == [(8, 1), (9, 2)]
    assert [image.seed for image in job.images] == [7, 8, 9]
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 3
    assert app.stop(PATIENCE_S)


@pytest.mark.parametrize("gone", [True, False])
def test_a_checkpoint_that_was_deleted_or_replaced_fails_the_job(start, tmp_path, gone):
    pause = Pause()
    painter = Painter(pause)
    other = checkpoint_file(tmp_path / "models" / "Stable-diffusion" / "other.safetensors", 8)
    app = start(painter)
    first, second = submit(app, checkpoint="plain"), submit(app, checkpoint="other")
    pause.wait()
    if gone:
        other.unlink()
        app.library.refresh()
    else:
        checkpoint_file(other, 16)
    pause.go.set()
    assert wait_for_end(app, first.id).state == "done"
    failed = wait_for_end(app, second.id)
    assert failed.state == "failed" and failed.images == ()
    assert ("is gone" if gone else "another file") in failed.error
    assert len(painter.painted) == 1  # no other model made it


def test_a_picture_that_cannot_be_saved_is_still_there_with_a_warning(start, tmp_path):
    (tmp_path / "outputs").write_text("a file in the way")
    app = start(Painter())
    job = wait_for_end(app, submit(app).id)
    (image,) = job.images
    assert job.state == "done" and not image.kept
    assert "was not saved" in image.warning
    assert app.keeper.read(job, image).startswith(b"\x89PNG")
    assert app.keeper.image_data(job, image)["path"] is None


def test_a_full_disk_keeps_the_picture_in_memory(start, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modules.gallery.save.write_whole", full)
    app = start(Painter())
    job = wait_for_end(app, submit(app).id)
    (image,) = job.images
    assert job.state == "done" and image.path is None
    assert "disk is full" in image.warning and "in memory" in image.warning
    assert app.keeper.read(job, image).startswith(b"\x89PNG")


def test_an_error_in_the_engine_fails_its_job_only(start):
    def fail_once(image, step):
        if image.seed == 1:
            raise RuntimeError("/secret/path/of/this/machine")

    app = start(Painter(fail_once))
    bad, good = submit(app, seed=1), submit(app, seed=2)
    bad = wait_for_end(app, bad.id)
    assert bad.state == "failed" and "internal error (RuntimeError)" in bad.error and "/secret" not in bad.error
    assert wait_for_end(app, good.id).state == "done"


def test_too_little_memory_is_a_sentence(start):
    def fail(image, step):
        raise MemoryError

    app = start(Painter(fail))
    assert "not enough memory" in wait_for_end(app, submit(app).id).error


def test_a_preview_that_fails_costs_no_picture(start, monkeypatch):
    monkeypatch.setattr("modules.jobs.worker.jpeg", lambda picture: 1 / 0)
    app = start(Painter())
    app.worker.somebody_polls()
    job = wait_for_end(app, submit(app).id)
    assert (job.state, len(job.images)) == ("done", 1)


def test_an_engine_that_cannot_start_fails_every_job_with_its_reason(tmp_path):
    app = make_app(tmp_path)

    def broken():
        raise ImportError("no module named torch")

    app.worker._engine_factory = broken
    app.start()
    assert "no module named torch" in wait_for_end(app, submit(app).id).error
    assert app.model_status.state == "failed"
    assert app.stop(PATIENCE_S)


def test_settings_are_those_of_the_moment_of_the_request(start):
    pause = Pause()
    app = start(Painter(pause))
    blocker = submit(app)
    job = submit(app, overrides={"samples_format": "webp"})
    plain = submit(app)
    pause.wait()
    app.settings.update({"samples_format": "jpg"})
    pause.go.set()
    wait_for_end(app, blocker.id)
    assert wait_for_end(app, job.id).images[0].path.suffix == ".webp"
    assert wait_for_end(app, plain.id).images[0].path.suffix == ".png"


def test_a_request_without_file_is_kept_for_its_answer(start, tmp_path):
    app = start(Painter())
    job = wait_for_end(app, submit(app, save=False).id)
    assert not (tmp_path / "outputs").exists()
    assert job.images[0].path.is_relative_to(tmp_path / "data" / "unsaved" / job.id)
    assert app.keeper.read(job, job.images[0]).startswith(b"\x89PNG")


def test_refusals_leave_no_row(start):
    pause = Pause()
    app = start(Painter(pause))
    with pytest.raises(NoCheckpoint, match="no checkpoint 'nope'"):
        submit(app, checkpoint="nope")
    with pytest.raises(SettingError, match="not over HTTP"):
        submit(app, overrides={"outdir_samples": "/etc"})
    with pytest.raises(SettingError, match="no such setting"):
        submit(app, overrides={"nope": 1})
    assert app.queue.of_client("tab") == []


def test_a_full_queue_says_so(start, monkeypatch):
    pause = Pause()
    app = start(Painter(pause))
    job = submit(app)
    pause.wait()
    monkeypatch.setattr(app.store, "count_waiting", lambda before=None: MOST_WAITING)
    with pytest.raises(QueueFull):
        submit(app)
    monkeypatch.undo()
    pause.go.set()
    wait_for_end(app, job.id)


def test_the_same_click_sent_fifty_times_at_once_is_one_job(start):
    app = start(Painter())
    go = threading.Barrier(50)
    ids: list[str] = []

    def click() -> None:
        go.wait(PATIENCE_S)
        ids.append(submit(app, key="key:click", seed=-1).id)

    threads = [threading.Thread(target=click) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(ids) == 50 and len(set(ids)) == 1
    assert len(app.queue.of_client("tab")) == 1
    with pytest.raises(KeyReused):
        submit(app, key="key:click", seed=5)
    wait_for_end(app, ids[0])


def test_the_spool_stays_within_its_bounds(start):
    app = start(Painter())
    app.spool._most_bytes = 1000
    jobs = [wait_for_end(app, submit(app, save=False, seed=n).id) for n in range(12)]
    left = [job for job in jobs if job.images[0].path.exists()]
    assert left and left == jobs[-len(left) :] and len(left) < 12
    assert sum(job.images[0].path.stat().st_size for job in left) <= 1000


def test_pictures_of_masks_are_kept_for_the_answer_and_warnings_are_told(start, tmp_path):
    app = start(Painter(warnings=("no LoRA named x",)))
    picture = app.inputs.put(Image.new("RGB", (64, 64)))
    wanted = {"return_mask": True}
    job = submit(app, batch_count=2, init=Init(images=(picture,), mask=Mask(image=picture)), overrides=wanted)
    done = wait_for_end(app, job.id)
    assert [image.warning for image in done.images] == ["no LoRA named x"] * 2
    assert all("img2img-images" in str(image.path) for image in done.images)
    for image in done.images:
        sizes = [Image.open(io.BytesIO(data)).size for data in app.keeper.read_beside(done, image)]
        assert sizes == [(8, 8), (9, 9)]


def test_input_pictures_live_as_long_as_a_job_names_them(start):
    app = start()
    used, unused = (app.inputs.put(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    wait_for_end(app, submit(app, init=Init(images=(used,))).id)
    for id in (used, unused):
        os.utime(app.inputs.folder / id[:2] / f"{id}.png", (0, 0))
    app.keeper.forget_old()
    assert (used in app.inputs, unused in app.inputs) == (True, False)


def test_the_last_runs_infotext_is_kept_for_pasting(start, tmp_path):
    app = start(Painter())
    assert app.last_infotext() == ""
    for seed in (40, 50):
        wait_for_end(app, submit(app, seed=seed, batch_count=2).id)
        assert app.last_infotext() == f"a cat\nSeed: {seed}" == (tmp_path / "params.txt").read_text("utf-8")


def test_without_a_history_there_is_none(start, tmp_path):
    app = start(Painter(), "--no-prompt-history")
    wait_for_end(app, submit(app).id)
    assert app.last_infotext() == "" and not (tmp_path / "params.txt").exists()


def test_loops_are_one_round(start):
    app = start(Painter())
    id = app.inputs.put(Image.new("RGB", (64, 64)))
    loops = Init(images=(id,), script=Loopback(loops=3))
    job = wait_for_end(app, submit(app, seed=40, batch_count=2, init=loops).id)
    assert job.state == "done" and [image.seed for image in job.images] == [40, 41, 42, 43, 44, 45]
    pictures = [app.keeper.read(job, image) for image in job.images]
    warnings: list[str] = []
    grid = app.keeper.grid(job, pictures, app.settings.current, warnings)
    assert Image.open(io.BytesIO(grid)).size == (3 * 64, 2 * 64) and warnings == []


def test_tiles_are_counted_when_the_engine_knows_them(start):
    told: list[tuple[float, int]] = []

    class Tiling(Painter):
        def generate(self, plan, checkpoint, settings, watch):
            watch(Progress("encoding", batches=len(plan.batches)))
            for number, (image,) in enumerate(plan.batches):
                for step in range(1, 13):
                    watch(Progress("sampling", number, len(plan.batches), step, 12))
                    told.append((app.worker.snapshot.fraction, app.worker.snapshot.steps))
                yield GeneratedImage(image.index, Image.new("RGB", (64, 64)), "tiles", image, True)
                told.append((app.worker.snapshot.fraction, app.worker.snapshot.steps))

    app = start(Tiling())
    id = app.inputs.put(Image.new("RGB", (64, 64)))
    tiles = Init(images=(id,), script=SdUpscale(overlap=8))
    job = wait_for_end(app, submit(app, batch_count=2, init=tiles).id)
    assert job.state == "done" and len(job.images) == 2
    halves = [*range(1, 13), 12, *range(13, 25), 24]
    assert told == [(part / 24, 12) for part in halves]


def loading_stops(app, painter, until, name="plain"):
    """Lets the load of this checkpoint go on in small parts, until it is ended or `until` is set."""
    begun = threading.Event()

    def load(checkpoint, watch):
        if checkpoint.model_name != name:
            return
        begun.set()
        for part in range(10_000_000):
            watch(min(part / 1000, 1))
            if until.is_set():
                return

    painter.on_load = load
    return begun


def test_an_interrupt_ends_a_load(start):
    painter, until = Painter(), threading.Event()
    app = start(painter, "--skip-load-model-at-start")
    begun = loading_stops(app, painter, until)
    first, second = submit(app), submit(app)
    assert begun.wait(PATIENCE_S)
    app.queue.interrupt(first.id)
    ended = wait_for_end(app, first.id)
    assert (ended.state, ended.error, ended.images) == ("interrupted", None, ())
    until.set()
    assert wait_for_end(app, second.id).state == "done"


def test_a_load_tells_how_far_it_is(start):
    painter = Painter()
    app = start(painter, "--skip-load-model-at-start")
    told: list[tuple[float | None, float]] = []

    def load(checkpoint, watch):
        for part in (0.25, 0.5, 1.0):
            watch(part)
            told.append((app.worker.snapshot.loaded, app.worker.snapshot.fraction))

    painter.on_load = load
    assert wait_for_end(app, submit(app).id).state == "done"
    assert told == [(0.25, 0), (0.5, 0), (1.0, 0)]


def test_a_load_in_the_middle_of_a_batch_keeps_its_place(start):
    seen: list[tuple[str, int, int, float | None]] = []

    class Refining(Painter):
        def generate(self, plan, checkpoint, settings, watch):
            for image in super().generate(plan, checkpoint, settings, watch):
                yield image
                watch(Progress("loading", loaded=0.5))
                now = app.worker.snapshot
                seen.append((now.phase, now.batch, now.step, now.loaded))

    app = start(Refining())
    assert wait_for_end(app, submit(app, batch_count=2).id).state == "done"
    assert seen == [("loading", 0, 3, 0.5), ("loading", 1, 3, 0.5)]


def test_another_choice_ends_a_load_that_nobody_waits_for(tmp_path):
    checkpoint_file(tmp_path / "models" / "Stable-diffusion" / "other.safetensors", 8)
    painter, until = Painter(), threading.Event()
    app = make_app(tmp_path, painter)
    app.use_checkpoint("plain")
    begun = loading_stops(app, painter, until)
    app.start()
    assert begun.wait(PATIENCE_S)
    app.use_checkpoint("other")
    assert wait_for_end(app, submit(app).id).state == "done"
    assert painter.loaded == ["other.safetensors"] * len(painter.loaded)
    assert app.stop(PATIENCE_S)


def test_a_run_is_closed_before_the_next_begins(start):
    """What it has changed at a model is undone by then, whatever ended it."""
    order: list[str] = []

    class Changing(Painter):
        def generate(self, plan, checkpoint, settings, watch):
            order.append("changed")
            try:
                yield from super().generate(plan, checkpoint, settings, watch)
            finally:
                order.append("undone")

    app = start(Changing())
    app.keeper.keep = lambda *given: 1 / 0
    for job in [submit(app), submit(app)]:
        assert wait_for_end(app, job.id).state == "failed"
    assert order == ["changed", "undone"] * 2


def test_an_interrupt_ends_the_reading_of_a_hash(start, monkeypatch):
    app = start(Painter(), "--skip-load-model-at-start")
    begun, told = threading.Event(), []

    def hashed(checkpoint, watch):
        for part in range(10_000_000):
            watch(part % 100, 100)
            begun.set()
        raise AssertionError("it was not ended")

    monkeypatch.setattr(app.library, "hashed", hashed)
    monkeypatch.setattr(app.worker, "_report", lambda *given: (told.append(given), app.report(*given)))
    job = submit(app)
    assert begun.wait(PATIENCE_S)
    app.queue.interrupt(job.id)
    ended = wait_for_end(app, job.id)
    assert (ended.state, ended.error) == ("interrupted", None)
    assert ("loading", "reading plain.safetensors for its hash: 7 %", 0.07) in told
    assert app.model_status.state == "ready"
