"""Keeps the pictures of a run: the file, its row, its event, in an order that survives a crash at any point."""

import io
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from modules.gallery.naming import NamingFacts
from modules.gallery.save import Kind, SaveError, choose_path, encode, save, write_atomic, write_text
from modules.generation.infotext import parse
from modules.generation.made import GeneratedImage
from modules.generation.plan import ImagePlan
from modules.generation.request import Loopback
from modules.imaging.grid import image_grid
from modules.jobs.events import Event, EventBus
from modules.jobs.inputs import Inputs
from modules.jobs.job import Job, JobImage
from modules.jobs.queue import JobQueue, Run, job_state
from modules.jobs.spool import Spool
from modules.library.checkpoints import Checkpoint
from modules.runtime.files import write_whole
from modules.settings.schema import Settings

log = logging.getLogger(__name__)

MOST_BYTES_READ = 256 * 2**20


class Keeper:
    def __init__(
        self, queue: JobQueue, bus: EventBus, spool: Spool, inputs: Inputs, data_dir: Path, last: Path | None = None
    ):
        """`last` is a file that holds the infotext of the last run, for the page to paste; None: there is none."""
        self._queue, self._bus, self._spool, self._inputs, self._data_dir = queue, bus, spool, inputs, data_dir
        self._last = last

    def keep(self, run: Run, made: GeneratedImage, checkpoint: Checkpoint, settings: Settings) -> None:
        """Writes one picture where it belongs; where that fails, it is still kept for the page, with a warning."""
        image = JobImage(
            index=made.index,
            path=None,
            kept=False,
            seed=made.plan.seed,
            infotext=made.infotext,
            width=made.image.width,
            height=made.image.height,
            warning="; ".join(made.warnings) or None,
        )
        wanted = run.job.request.save and settings.samples_save and (made.complete or settings.save_incomplete_images)
        if wanted:
            image = self._save(run, made, image, checkpoint, settings)
        if image.path is None:
            image = self._spool_away(run, made, image, settings)
        for place, (name, beside) in enumerate(made.beside, start=1):
            setting = name.replace(" ", "_")  # mask, mask_composite; anything else is for the answer alone
            if getattr(settings, f"return_{setting}", True):
                image = self._keep_beside(run.job, image, place, beside)
            if getattr(settings, f"save_{setting}", False) and image.kept:
                image = self._save_beside(run.job, made, image, name, beside, checkpoint, settings)
        job = self._queue.saved(run, image)
        if image.index == 0:
            self._remember(image.infotext)
        self._bus.publish(Event("image", self.image_data(job, image), job.id, job.client))
        self._bus.publish(Event("job", job_state(job, 0), job.id, job.client))

    def _save(
        self, run: Run, made: GeneratedImage, image: JobImage, checkpoint: Checkpoint, settings: Settings
    ) -> JobImage:
        """Under outputs/. A path of None tells that it failed, the warning why."""
        facts = naming_facts(run.job, image, settings, checkpoint, made.plan)
        try:
            data = encode(made.image, made.infotext, settings.samples_format, settings)
            path = choose_path(self._data_dir, kind_of(run.job), facts, settings, datetime.now(), image=made.image)
            image = replace(image, path=path, kept=True)
            self._queue.intend(run, image, data)
            write_atomic(path, data)
        except SaveError as error:
            log.warning("job %s: %s", run.job.id, error)
            return replace(warned(image, str(error)), path=None, kept=False)
        return warned(image, write_text(path, made.infotext, settings))

    def _keep_beside(self, job: Job, image: JobImage, place: int, beside: Image.Image) -> JobImage:
        """Masks and the like, for the answer only."""
        data = encode(beside, "", "png", Settings())
        try:
            self._spool.make_room(len(data))
            write_atomic(self._spool.beside_path(job.id, image.index, place), data)
        except (SaveError, OSError) as error:
            log.warning("job %s: %s", job.id, error)
            return warned(image, f"{error}; the picture of the mask is lost")
        return image

    def _save_beside(
        self,
        job: Job,
        made: GeneratedImage,
        image: JobImage,
        name: str,
        beside: Image.Image,
        checkpoint: Checkpoint,
        settings: Settings,
    ) -> JobImage:
        """Under outputs/, with the picture's infotext, as A1111 does."""
        facts = naming_facts(job, image, settings, checkpoint, made.plan)
        try:
            saved = save(
                beside,
                made.infotext,
                root=self._data_dir,
                kind=kind_of(job),
                facts=facts,
                settings=settings,
                now=datetime.now(),
                suffix=f"-{name.replace(' ', '-')}",
            )
        except SaveError as error:
            log.warning("job %s: %s", job.id, error)
            return warned(image, str(error))
        return warned(image, saved.warning)

    def read_beside(self, job: Job, image: JobImage) -> list[bytes]:
        """What was kept beside a picture, in order: its mask, and what was painted alone."""
        return [path.read_bytes() for path in self._spool.beside(job.id, image.index)]

    def _remember(self, infotext: str) -> None:
        if self._last is None:
            return
        try:
            write_whole(self._last, infotext.encode("utf-8", "replace"))
        except OSError as error:
            log.warning("%s cannot be written (%s); pasting will read an older run", self._last.name, error.strerror)

    def _spool_away(self, run: Run, made: GeneratedImage, image: JobImage, settings: Settings) -> JobImage:
        """Beside the database; if even that fails, in memory."""
        data = encode(made.image, made.infotext, "png", settings)
        path = self._spool.path(run.job.id, image.index)
        try:
            self._spool.make_room(len(data))
            self._queue.intend(run, replace(image, path=path), data)
            write_atomic(path, data)
        except (SaveError, OSError) as error:
            log.warning("job %s: %s; the picture is kept in memory", run.job.id, error)
            self._spool.keep_in_memory(run.job.id, image.index, data)
            note = "it is kept in memory until the program ends"
            return warned(image, note if image.warning else f"{error}; {note}")
        return replace(image, path=path)

    def read(self, job: Job, image: JobImage) -> bytes | None:
        """The picture's bytes as they were written; None when they are gone."""
        if image.path is None:
            return self._spool.from_memory(job.id, image.index)
        try:
            with image.path.open("rb") as file:
                return file.read(MOST_BYTES_READ)
        except OSError as error:
            log.warning("picture %d of job %s cannot be read: %s", image.index, job.id, error)
            return None

    def grid(
        self, job: Job, pictures: list[bytes], settings: Settings, warnings: list[str], saved: bool = True
    ) -> bytes | None:
        """All pictures of a job in one, saved and returned as the settings say; it carries the first one's infotext.
        `saved`: may be saved."""
        saved = saved and settings.grid_save
        if not (settings.return_grid or saved):
            return None
        sheet = image_grid(
            [Image.open(io.BytesIO(data)) for data in pictures],
            rows=job.request.batch_count if loops(job) else settings.n_rows,
            batch_size=job.request.batch_size,
            prevent_empty_spots=settings.grid_prevent_empty_spots,
        )
        text = job.images[0].infotext
        if saved:
            facts = naming_facts(job, job.images[0], settings)
            now = datetime.now()
            kind: Kind = "img2img grid" if kind_of(job) == "img2img" else "txt2img grid"
            try:
                save(sheet, text, root=self._data_dir, kind=kind, facts=facts, settings=settings, now=now)
            except SaveError as error:
                warnings.append(str(error))
        return encode(sheet, text, "png", settings) if settings.return_grid else None

    def forget_old(self) -> None:
        """The oldest finished jobs go, with what was kept for their answers only."""
        self._queue.prune(self._spool.forget)
        self._inputs.keep_only(self._queue.pictures())

    def image_data(self, job: Job, image: JobImage) -> dict[str, Any]:
        """The fields of an `image` event."""
        shown = image.kept and image.path is not None and image.path.is_relative_to(self._data_dir)
        return {
            "index": image.index,
            "url": f"/api/v1/jobs/{job.id}/images/{image.index}",
            "infotext": image.infotext,
            "seed": image.seed,
            "path": image.path.relative_to(self._data_dir).as_posix() if shown and image.path else None,
            "width": image.width,
            "height": image.height,
            "warning": image.warning,
        }


def kind_of(job: Job) -> Literal["txt2img", "img2img"]:
    return "img2img" if job.request.init else "txt2img"


def warned(image: JobImage, warning: str | None) -> JobImage:
    """With one more warning, if there is one."""
    return replace(image, warning="; ".join(filter(None, (image.warning, warning))) or None)


def loops(job: Job) -> bool:
    """Whether a round's pictures follow from one another: the grid has a row for each round then."""
    return job.request.init is not None and isinstance(job.request.init.script, Loopback)


def naming_facts(
    job: Job,
    image: JobImage,
    settings: Settings,
    checkpoint: Checkpoint | None = None,
    plan: ImagePlan | None = None,
) -> NamingFacts:
    """What patterns of file names may say about a picture; with its plan, also its own prompts, styles included."""
    request = job.request
    size = request.round_size
    first = image.index // size * size
    seeds = [request.seed if request.varies_one_seed else request.seed + n for n in (first, first + size - 1)]
    part = request.init or request.hires
    vae = parse(image.infotext).get("VAE")
    return NamingFacts(
        prompt=plan.prompt if plan else request.prompt,
        negative_prompt=plan.negative_prompt if plan else request.negative_prompt,
        seed=image.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=image.width,
        height=image.height,
        sampler=request.sampler,
        schedule=request.schedule,
        model_name=checkpoint.model_name if checkpoint else job.model.model_name,
        model_hash=(checkpoint and checkpoint.shorthash) or (job.model.sha256 or "")[:10],
        clip_skip=settings.CLIP_stop_at_last_layers,
        batch_size=size,
        batch_index=image.index % size,
        batch_count=request.batch_count,
        image_index=image.index,
        first_seed=seeds[0],
        last_seed=seeds[1],
        denoising_strength=part.denoising_strength if part else None,
        prompt_without_styles=request.prompt,
        styles=request.styles,
        vae=str(vae).split(".")[0] if vae else None,
        job_timestamp=f"{datetime.fromtimestamp(job.started or job.created):%Y%m%d%H%M%S}",
    )
