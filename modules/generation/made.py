"""A picture as the engine hands it over. Knows no torch, so that whoever keeps pictures can know it."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from modules.generation.plan import ImagePlan


@dataclass(frozen=True)
class GeneratedImage:
    index: int  # 0-based, among all pictures of the request
    image: Image.Image
    infotext: str
    plan: ImagePlan
    complete: bool  # False: interrupted or skipped before the last step
    beside: tuple[tuple[str, Image.Image], ...] = ()  # what else the settings want to see: the mask, and so on
    warnings: tuple[str, ...] = ()  # sentences for the user

    def developed(self) -> "GeneratedImage":
        return self


@dataclass(frozen=True)
class Developing:
    """One that is sampled and not decoded yet."""

    index: int
    plan: ImagePlan
    complete: bool
    develop: Callable[[], GeneratedImage]  # waits; for any thread but the engine's

    def developed(self) -> GeneratedImage:
        return self.develop()


Picture = GeneratedImage | Developing
