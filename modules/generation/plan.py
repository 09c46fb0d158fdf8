"""From a request to pictures: settle() picks what the user left open, once, when the request is accepted;
plan() lists the pictures. Below here nothing is -1 or empty. Knows no torch."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby
from secrets import randbelow

from modules.generation.request import SEED_LIMIT, GenerationRequest

PICKED_SEEDS = 2**32  # a seed that we pick is below this, as users know it


@dataclass(frozen=True)
class ImagePlan:
    """One picture. Everything that makes it different from its neighbours."""

    index: int  # 0-based, among all pictures of the request
    batch: int  # 0-based round
    seed: int
    prompt: str
    negative_prompt: str


@dataclass(frozen=True)
class Plan:
    request: GenerationRequest
    images: tuple[ImagePlan, ...]  # in order; only those still to be made

    @property
    def batches(self) -> tuple[tuple[ImagePlan, ...], ...]:
        """What is sampled together: the pictures of one round."""
        return tuple(tuple(images) for _, images in groupby(self.images, key=lambda image: image.batch))


def settle(request: GenerationRequest, checkpoint: str, pick: Callable[[int], int] = randbelow) -> GenerationRequest:
    """The request with its seed and its checkpoint fixed, so that running it twice makes the same pictures twice.

    `checkpoint` is the name of the file that was found for request.checkpoint; pick(n) gives a number in 0 … n-1."""
    images = request.batch_size * request.batch_count
    if request.seed + images > SEED_LIMIT:
        raise ValueError(f"seed must be at most {SEED_LIMIT - images} for {images} images, got {request.seed}")
    seed = pick(PICKED_SEEDS - images) if request.seed == -1 else request.seed
    return request.model_copy(update={"seed": seed, "checkpoint": checkpoint})


def plan(request: GenerationRequest, done: Collection[int] = ()) -> Plan:
    """The pictures of a settled request, without those in `done` (indices that an earlier run has finished)."""
    if request.seed < 0 or not request.checkpoint:
        raise ValueError("only a settled request can be planned: its seed and checkpoint are still open")
    images = tuple(
        ImagePlan(
            index=index,
            batch=index // request.batch_size,
            seed=request.seed + index,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
        )
        for index in range(request.batch_size * request.batch_count)
        if index not in done
    )
    return Plan(request, images)
