"""What a drawing can be called: sentences for training. Knows no tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tools.starter.artwork import Drawing
from tools.starter.sources import STYLES

DEFAULT_STYLE = "noto"  # drawn when the prompt names no style
WHITE = "white"
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "blue": (30, 136, 229),
    "purple": (142, 36, 170),
    "pink": (244, 143, 177),
    "black": (20, 20, 20),
    "gray": (158, 158, 158),
    "brown": (121, 85, 72),
    "sky blue": (129, 212, 250),
    "dark blue": (26, 35, 126),
    WHITE: (255, 255, 255),
}
SHARED_TAG = 3  # a keyword of more concepts than this does not say which is meant


def without_shared_tags(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Drawings whose keywords tell them apart: "fruit" goes, "kitten" stays; so do other concepts' names."""
    concepts = {drawing.concept.key: drawing.concept for drawing in drawings}.values()
    counts = Counter(tag for concept in concepts for tag in concept.tags)
    names = {concept.name for concept in concepts}
    told = {
        concept.key: replace(
            concept, tags=tuple(t for t in concept.tags if counts[t] <= SHARED_TAG and t not in names and len(t) > 2)
        )
        for concept in concepts
    }
    return [replace(drawing, concept=told[drawing.concept.key]) for drawing in drawings]


def caption(drawing: Drawing, background: str, rng: np.random.Generator) -> str:
    """One of many ways to ask for this drawing on this background."""
    concept = drawing.concept
    words = concept.name
    if concept.tags and rng.random() < 0.25:
        count = rng.integers(1, 4)
        tags = [str(tag) for tag in rng.permutation(concept.tags)[:count]]
        words = ", ".join([concept.name, *tags] if rng.random() < 0.5 else tags)
    form = rng.random()
    article = "an" if words[0] in "aeiou" else "a"
    if form < 0.15:
        words = f"{article} {words}"
    elif form < 0.22:
        words = f"an emoji of {article} {words}"
    elif form < 0.27:
        words = f"a picture of {article} {words}"
    elif form < 0.30:
        words = f"a drawing of {article} {words}"
    extras = []
    if drawing.style != DEFAULT_STYLE or rng.random() < 0.2:
        extras.append(str(rng.choice(STYLES[drawing.style].words)))
    if background != WHITE:
        extras.append(f"{background} background" if rng.random() < 0.5 else f"on a {background} background")
    elif rng.random() < 0.1:
        extras.append("white background")
    for extra in rng.permutation(extras):
        joiner = " " if extra.startswith("on a") and "," not in words else ", "
        words += joiner + str(extra)
    return words
