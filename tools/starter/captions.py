"""What a drawing can be called, in English and in Chinese: sentences for training. Knows no tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
BACKGROUNDS_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "black": "黑色",
    "gray": "灰色",
    "brown": "棕色",
    "sky blue": "天蓝色",
    "dark blue": "深蓝色",
    WHITE: "白色",
}
SHARED_TAG = 3  # a keyword of more concepts than this does not say which is meant
SYNONYMS_FILE = Path(__file__).parent / "synonyms.txt"  # name: what else people call it


def with_telling_tags(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Drawings whose keywords tell them apart: "fruit" goes, "kitten" stays; so do other concepts' names.

    What synonyms.txt says comes first: of the many keywords "car" it knows whose it is.
    """
    concepts = {drawing.concept.key: drawing.concept for drawing in drawings}.values()
    names = {concept.name for concept in concepts} | {concept.name_zh for concept in concepts}
    counts = Counter(tag for concept in concepts for tag in (*concept.tags, *concept.tags_zh))
    synonyms = load_synonyms()

    def telling(tags: Sequence[str], shortest: int) -> list[str]:
        known = [tag for tag in tags if counts[tag] <= SHARED_TAG and tag not in names]
        return [tag for tag in known if len(tag) >= shortest and tag == tag.lower()]

    told = {
        concept.key: replace(
            concept,
            tags=tuple(dict.fromkeys([*synonyms.get(concept.name, ()), *telling(concept.tags, 3)])),
            tags_zh=tuple(telling(concept.tags_zh, 2)),
        )
        for concept in concepts
    }
    return [replace(drawing, concept=told[drawing.concept.key]) for drawing in drawings]


def load_synonyms() -> dict[str, tuple[str, ...]]:
    lines = (line.split(": ", 1) for line in SYNONYMS_FILE.read_text("utf-8").splitlines())
    return {name: tuple(words.split(", ")) for name, words in lines}


def caption(drawing: Drawing, background: str, rng: np.random.Generator, chinese: float = 0.0) -> str:
    """One of many ways to ask for this drawing on this background. `chinese`: how often in Chinese, 0-1."""
    if chinese and drawing.concept.name_zh and rng.random() < chinese:
        return caption_zh(drawing, background, rng)
    words = _named(drawing.concept.name, drawing.concept.tags, ", ", rng)
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


def caption_zh(drawing: Drawing, background: str, rng: np.random.Generator) -> str:
    """One of many ways to ask in Chinese."""
    words = _named(drawing.concept.name_zh, drawing.concept.tags_zh, "，", rng)
    form = rng.random()
    if form < 0.15:
        words = f"一个{words}"
    elif form < 0.22:
        words = f"{words}的图片"
    if background != WHITE or rng.random() < 0.1:
        colour = BACKGROUNDS_ZH[background]
        words = f"{words}，{colour}背景" if rng.random() < 0.6 else f"{colour}背景上的{words}"
    if drawing.style != DEFAULT_STYLE or rng.random() < 0.2:
        style = str(rng.choice(STYLES[drawing.style].words_zh))
        words = f"{words}，{style}" if rng.random() < 0.6 else f"{style}的{words}"
    return f"画{words}" if rng.random() < 0.05 else words


def _named(name: str, tags: Sequence[str], joiner: str, rng: np.random.Generator) -> str:
    """Mostly the name alone, sometimes keywords beside it or instead of it."""
    if not tags or rng.random() >= 0.3:
        return name
    chosen = [str(tag) for tag in rng.permutation(tags)[: rng.integers(1, 4)]]
    form = rng.random()
    if form < 0.4:
        return joiner.join([name, *chosen])
    return chosen[0] if form < 0.8 else joiner.join(chosen)
