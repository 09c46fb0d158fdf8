"""A data folder, a checkpoint that costs nothing, and an engine that paints in one colour: real files, real SQLite, the
real worker thread. The engine stops where a test tells it to, so that nothing here has to wait for a clock."""

import json
import struct
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from PIL import Image

from modules.app import App
from modules.generation.made import GeneratedImage
from modules.generation.plan import ImagePlan, Plan
from modules.generation.progress import Interrupted, Progress, Skipped, Watch
from modules.generation.request import GenerationRequest
from modules.jobs.job import Job
from modules.jobs.worker import LoadWatch
from modules.library.checkpoints import Checkpoint
from modules.runtime.flags import parse
from modules.runtime.paths import paths_from
from modules.settings.schema import Settings

PATIENCE_S = 90  # only ever reached by a test that fails


class Painter:
    """`on_step(image, step)` is called in the worker's thread, before the step is told."""

    def __init__(
        self, on_step: Callable[[ImagePlan, int], None] = lambda image, step: None, warnings: tuple[str, ...] = ()
    ):
        self.on_step, self.warnings = on_step, warnings
        self.on_load: Callable[[Checkpoint, LoadWatch], None] = lambda checkpoint, watch: None
        self.loaded: list[str] = []
        self.painted: list[tuple[int, int]] = []  # (seed, index)

    def load(self, checkpoint: Checkpoint, watch: LoadWatch, settings: Settings | None = None) -> str:
        self.on_load(checkpoint, watch)
        self.loaded.append(checkpoint.name)
        return checkpoint.name

    def unload(self) -> None:
        self.loaded.append("")

    def generate(
        self, plan: Plan, checkpoint: Checkpoint, settings: Settings, watch: Watch
    ) -> Generator[GeneratedImage, None, None]:
        steps = plan.request.steps
        for number, batch in enumerate(plan.batches):
            stop: Exception | None = None
            begun = False
            try:
                watch(Progress("encoding", number, len(plan.batches), 0, steps))
                for step in range(1, steps + 1):
                    self.on_step(batch[0], step)
                    begun = True
                    watch(
                        Progress("sampling", number, len(plan.batches), step, steps, lambda: Image.new("RGB", (8, 8)))
                    )
            except (Interrupted, Skipped) as error:
                stop = error
            if begun:
                watch(Progress("decoding", number, len(plan.batches), steps, steps))
                for image in batch:
                    self.painted.append((image.seed, image.index))
                    picture = Image.new("RGB", (plan.request.width, plan.request.height), (image.seed % 256, 80, 160))
                    masked = plan.request.init and plan.request.init.mask
                    beside = (("mask", Image.new("RGB", (8, 8))), ("part", Image.new("RGBA", (9, 9)))) if masked else ()
                    text = f"{image.prompt}\nSeed: {image.seed}"
                    yield GeneratedImage(image.index, picture, text, image, stop is None, beside, self.warnings)
            if isinstance(stop, Interrupted):
                return


class Pause:
    """Holds the painter at one step until the test lets it go on."""

    def __init__(self, at: int = 1, index: int = 0):
        self.at, self.index = at, index
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, image: ImagePlan, step: int) -> None:
        if (image.index, step) == (self.index, self.at):
            self.reached.set()
            assert self.go.wait(PATIENCE_S)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE_S)


def checkpoint_file(path: Path, shape: int = 4) -> Path:
    """A safetensors file with one tensor."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [shape], "data_offsets": [0, 4 * shape]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * shape))
    return path


def flags_for(folder: Path, *more: str) -> Namespace:
    return parse(["--data-dir", str(folder), *more])


def make_app(folder: Path, painter: Painter | None = None, *flags: str) -> App:
    """Not started yet. The folder's only checkpoint is `plain`."""
    if not (folder / "models" / "Stable-diffusion" / "plain.safetensors").exists():
        checkpoint_file(folder / "models" / "Stable-diffusion" / "plain.safetensors")
    parsed = flags_for(folder, *flags)
    return App(paths_from(parsed, root=folder), parsed, lambda flags, report: painter or Painter())


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"width": 64, "height": 64, "steps": 3, "prompt": "a cat", **fields})


def submit(app: App, key: str | None = None, client: str = "tab", **fields: Any) -> Job:
    return app.queue.submit(request(**fields), app.settings.current, "page", client, key)


def wait_for_pictures(app: App, id: str, number: int) -> None:
    """Until so many of the job's are kept."""
    end = time.monotonic() + PATIENCE_S
    while len(app.queue.get(id).images) < number:
        assert time.monotonic() < end, app.queue.get(id)
        time.sleep(0.01)


def wait_for_end(app: App, id: str) -> Job:
    """Returns as soon as the job's end is committed."""
    ended = threading.Event()
    original = app.queue._tell

    def tell(job: Job) -> None:
        original(job)
        if job.id == id and job.ended:
            ended.set()

    app.queue._tell = tell  # type: ignore[method-assign]
    if not app.queue.get(id).ended:
        assert ended.wait(PATIENCE_S), f"the job is still {app.queue.get(id).state}"
    return app.queue.get(id)
