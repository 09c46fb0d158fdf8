"""From a request to pictures: settle() picks what the user left open, once, when the request is accepted;
plan() lists the pictures. Below here nothing is -1 or empty, and prompts have their styles and wildcards in them.
Knows no torch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from secrets import randbelow
from typing import Any

from modules.generation.request import SEED_LIMIT, GenerationRequest, Loopback
from modules.prompt.comments import strip_comments
from modules.prompt.networks import NetworkTag, extract_networks
from modules.prompt.styles import Style, apply_styles
from modules.prompt.wildcards import Lines, expand_wildcards

PICKED_SEEDS = 2**32  # a seed that we pick is below this, as users know it


@dataclass(frozen=True)
class ImagePlan:
    """One picture. Everything that makes it different from its neighbours."""

    index: int  # 0-based, among all pictures of the request
    batch: int  # 0-based round
    seed: int
    variation_seed: int
    prompt: str  # as the infotext has it: with styles and network tags
    negative_prompt: str
    hires_prompt: str
    hires_negative_prompt: str


@dataclass(frozen=True)
class Prompt:
    """A prompt for the text encoder, and the networks that it names."""

    text: str
    networks: tuple[NetworkTag, ...]


def split(prompt: str) -> Prompt:
    text, tags = extract_networks(prompt)
    return Prompt(text, tuple(tags))


@dataclass(frozen=True)
class Plan:
    request: GenerationRequest
    images: tuple[ImagePlan, ...]  # in order; only those still to be made
    before: tuple[ImagePlan, ...] = ()  # what a loop that goes on began with: made, but needed for what follows

    @property
    def batches(self) -> tuple[tuple[ImagePlan, ...], ...]:
        """The pictures of one round: what is sampled together, or follows from one another."""
        return tuple(tuple(images) for _, images in groupby(self.images, key=lambda image: image.batch))


@dataclass(frozen=True)
class Texts:
    """What prompts may name: the user's styles, and the lines of wildcards; and whether `#` begins a comment."""

    styles: Sequence[Style] = ()
    wildcards: Lines = lambda name: ()
    comments: bool = True
    completed: Callable[[str], str] = str  # adds the networks that the settings want in every prompt


def settle(
    request: GenerationRequest, find: Callable[[str], str], pick: Callable[[int], int] = randbelow
) -> GenerationRequest:
    """The request with its seeds and its checkpoints fixed, so that running it twice makes the same pictures twice.

    `find` gives the name of the file that is meant by a title, name or hash, or by "", the current one, and raises
    ValueError; pick(n) gives a number in 0 … n-1."""
    images = request.image_count
    settled: dict[str, Any] = {"checkpoint": find(request.checkpoint)}
    for field in ("seed", "variation_seed"):
        seed = getattr(request, field)
        if seed + images > SEED_LIMIT:
            raise ValueError(f"{field} must be at most {SEED_LIMIT - images} for {images} images, got {seed}")
        settled[field] = pick(PICKED_SEEDS - images) if seed == -1 else seed
    if request.hires and request.hires.checkpoint:
        settled["hires"] = request.hires.model_copy(update={"checkpoint": find(request.hires.checkpoint)})
    if request.refiner:
        settled["refiner"] = request.refiner.model_copy(update={"checkpoint": find(request.refiner.checkpoint)})
    return request.model_copy(update=settled)


def plan(request: GenerationRequest, done: Collection[int] = (), texts: Texts | None = None) -> Plan:
    """The pictures of a settled request, without those in `done` (indices that an earlier run has finished)."""
    varied = request.variation_strength > 0
    if request.seed < 0 or (varied and request.variation_seed < 0) or not request.checkpoint:
        raise ValueError("only a settled request can be planned: its seeds and checkpoint are still open")
    images = [_image(request, index, texts or Texts()) for index in range(request.image_count)]
    left = tuple(image for image in images if image.index not in done)
    looping = request.init is not None and isinstance(request.init.script, Loopback)
    begun = {image.batch for image in left} if looping else ()
    return Plan(request, left, tuple(image for image in images if image.index in done and image.batch in begun))


def _image(request: GenerationRequest, index: int, texts: Texts) -> ImagePlan:
    hires = request.hires
    names = {style.name: style for style in texts.styles}
    styles = [names[name] for name in request.styles if name in names]
    scripted = request.init is not None and request.init.script is not None
    varied = request.varies_one_seed
    variation_seed = max(request.variation_seed, 0) + (0 if scripted else index)
    # Pictures that vary one seed share it; their wildcards still differ. Those of one loop have the same prompt.
    seed = request.seed + (0 if varied else index)
    chosen_by = variation_seed if varied else request.seed + (index - index % request.round_size if scripted else index)

    def written(text: str, style_texts: list[str]) -> str:
        if texts.comments:  # before, or a comment in the last line would take the styles with it
            text, style_texts = strip_comments(text), [strip_comments(style) for style in style_texts]
        text = apply_styles(text, style_texts)
        return expand_wildcards(text, texts.wildcards, chosen_by)

    prompts, negatives = [style.prompt for style in styles], [style.negative_prompt for style in styles]
    return ImagePlan(
        index=index,
        batch=index // request.round_size,
        seed=seed,
        variation_seed=variation_seed,
        prompt=texts.completed(written(request.prompt, prompts)),
        negative_prompt=written(request.negative_prompt, negatives),
        hires_prompt=texts.completed(written(hires and hires.prompt or request.prompt, prompts)),
        hires_negative_prompt=written(hires and hires.negative_prompt or request.negative_prompt, negatives),
    )
