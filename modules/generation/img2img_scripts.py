"""What img2img makes in several runs: SD upscale paints a large picture tile by tile, Loopback goes on from its own
pictures. Plans the runs and puts them together; knows nothing of how one is done."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from PIL import Image

from modules.generation.made import GeneratedImage, Picture
from modules.generation.plan import ImagePlan, Plan
from modules.generation.progress import Interrupted, Progress, Skipped, Watch
from modules.generation.request import MAX_PIXEL_STEPS, GenerationRequest, Loopback, SdUpscale
from modules.generation.shelf import Shelf
from modules.generation.steps import round_steps, span, strengths
from modules.imaging.tiles import Tiling, tiling
from modules.imaging.transparency import flatten
from modules.settings.schema import Settings

MAX_TILED_PIXELS = 2**29  # of all tiles of a picture, those that overlap counted twice

Made = tuple[Sequence[Picture], Interrupted | Skipped | None]  # pictures, and what ended them early


class Run(Protocol):
    """Makes a batch of a plan."""

    def __call__(self, number: int, plan: Plan, *, shelf: Shelf, watch: Watch) -> Made: ...


def rounds(plan: Plan, shelf: Shelf, settings: Settings, watch: Watch, run: Run) -> Iterator[Made]:
    """All that a plan makes, batch by batch; of Loopback, picture by picture. Whoever gets an Interrupted has to stop
    here."""
    script = plan.request.init and plan.request.init.script
    if isinstance(script, SdUpscale):
        return sd_upscale(script, plan, shelf, settings, watch, run)
    if isinstance(script, Loopback):
        return loopback(plan, shelf, settings, watch, run)
    return (run(number, plan, shelf=shelf, watch=watch) for number in range(len(plan.batches)))


# --- SD upscale ------------------------------------------------------------------------------------------------------


def sd_upscale(
    script: SdUpscale, plan: Plan, shelf: Shelf, settings: Settings, watch: Watch, run: Run
) -> Iterator[Made]:
    try:
        watch(Progress("encoding", batches=len(plan.batches)))  # a network may need minutes for the enlarging
    except (Interrupted, Skipped) as stop:
        yield [], stop
        return
    picture = enlarged(script, plan.request, shelf, settings)
    tiles = tiling(picture.size, (plan.request.width, plan.request.height), script.overlap)
    refuse_too_many(tiles, plan.request)
    pieces = tiles.cut(picture)
    for number, (image,) in enumerate(plan.batches):
        made, stopped = painted(image, pieces, number, plan, shelf, settings, watch, run)
        painted_over = [made[place].image if place in made else piece for place, piece in enumerate(pieces)]
        if not made:
            yield [], stopped
            continue
        whole = replace(
            made[min(made)],  # the infotext is that of the first tile
            index=image.index,
            image=tiles.join(painted_over),
            plan=image,
            complete=len(made) == len(tiles) and all(one.complete for one in made.values()),
            warnings=tuple(dict.fromkeys(warning for one in made.values() for warning in one.warnings)),
        )
        yield [whole], stopped


def painted(
    image: ImagePlan,
    pieces: Sequence[Image.Image],
    number: int,
    plan: Plan,
    shelf: Shelf,
    settings: Settings,
    watch: Watch,
    run: Run,
) -> tuple[dict[int, GeneratedImage], Interrupted | None]:
    """The tiles of one picture by their places, as many as are made before it is interrupted. Every tile has the seed
    after that of the one before. Skipped means a tile."""
    request, made = plan.request, dict[int, GeneratedImage]()
    steps = round_steps(request, settings.img2img_fix_steps)
    starts = range(0, len(pieces), request.batch_size)
    for done, start in enumerate(starts):
        some = pieces[start : start + request.batch_size]
        seeds = [replace(image, index=place, seed=image.seed + start + place) for place in range(len(some))]
        part, stocked = from_pictures(some, request, seeds, shelf)
        telling = within(watch, number, len(plan.batches), done * steps, len(starts) * steps)
        images, stopped = run(0, part, shelf=stocked, watch=telling)
        made |= {start + one.index: one.developed() for one in images}
        if isinstance(stopped, Interrupted):
            return made, stopped
    return made, None


def enlarged(script: SdUpscale, request: GenerationRequest, shelf: Shelf, settings: Settings) -> Image.Image:
    assert request.init
    picture = flatten(shelf.picture(request.init.images[0]), settings.img2img_background_color)
    if script.upscaler == "None":  # as in A1111: not even the scale counts
        return picture
    return shelf.enlarger(script.upscaler, settings)(picture, script.scale)


def refuse_too_many(tiles: Tiling, request: GenerationRequest) -> None:
    pixels = len(tiles) * request.width * request.height
    if pixels > MAX_TILED_PIXELS or pixels * request.steps * request.image_count > MAX_PIXEL_STEPS:
        width, height = tiles.size
        raise ValueError(
            f"SD upscale of {width}×{height} pixels takes {len(tiles)} tiles of {request.width}×{request.height}: too "
            "many for one request; take a smaller scale or overlap, or larger tiles"
        )


# --- Loopback --------------------------------------------------------------------------------------------------------


def loopback(plan: Plan, shelf: Shelf, settings: Settings, watch: Watch, run: Run) -> Iterator[Made]:
    """Skipped means what is left of the loops of a round."""
    total = round_steps(plan.request, settings.img2img_fix_steps)
    for number, batch in enumerate(plan.batches):
        loops = sorted((image for image in (*plan.before, *batch) if image.batch == batch[0].batch), key=_place)
        picture: Image.Image | None = None
        done, infotext = 0, ""
        for image, strength in zip(loops, strengths(plan.request), strict=True):
            part, stocked = loop(image, strength, picture, plan.request, shelf)
            looped, stopped = run(0, part, shelf=stocked, watch=within(watch, number, len(plan.batches), done, total))
            images = [one.developed() for one in looped]
            done += span(plan.request.steps, strength, settings.img2img_fix_steps).walked
            infotext = infotext or "".join(one.infotext for one in images)  # of all loops: it tells how to make them
            yield [replace(one, infotext=infotext) for one in images if image in batch], stopped
            if stopped:
                break
            picture = images[0].image


def loop(
    image: ImagePlan, strength: float, picture: Image.Image | None, request: GenerationRequest, shelf: Shelf
) -> tuple[Plan, Shelf]:
    """One run. `picture`: what the loop before made; None: there was none."""
    if picture is None:
        return from_pictures(None, request, [image], shelf)
    assert request.init
    changes: dict[str, Any] = {"denoising_strength": strength}
    if request.init.mask:  # what was filled in is painted by now
        changes["mask"] = request.init.mask.model_copy(update={"content": "original"})
    init = request.init.model_copy(update=changes)
    return from_pictures([picture], request.model_copy(update={"init": init}), [image], shelf)


def _place(image: ImagePlan) -> int:
    return image.index


# --- both ------------------------------------------------------------------------------------------------------------


def from_pictures(
    pictures: Sequence[Image.Image] | None, request: GenerationRequest, images: Sequence[ImagePlan], shelf: Shelf
) -> tuple[Plan, Shelf]:
    """A plan of one batch that starts from these pictures (None: the request's own), and the shelf that has them."""
    assert request.init
    if pictures is None:
        return Plan(request, tuple(images)), shelf
    stock = {f"{place:064x}": picture for place, picture in enumerate(pictures)}
    init = request.init.model_copy(update={"images": tuple(stock)})
    plan = Plan(request.model_copy(update={"init": init}), tuple(images))
    return plan, replace(shelf, picture=lambda id: stock[id] if id in stock else shelf.picture(id))


def within(watch: Watch, batch: int, batches: int, done: int, steps: int) -> Watch:
    """For a run that is a part of a batch, of which `done` of `steps` steps are behind it."""
    return lambda progress: watch(
        replace(progress, batch=batch, batches=batches, step=done + progress.step, steps=steps)
    )
