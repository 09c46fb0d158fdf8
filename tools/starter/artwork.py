"""Stage data: emoji artwork and its words, from packages to two files.

`artwork.npy` holds RGBA pictures (N, 128, 128, 4) uint8, `artwork.jsonl` one `Drawing` a line, in the same order.
"""

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.starter.sources import EMOJIBASE, EMOJILIB, STYLES, fetch

log = logging.getLogger(__name__)

SIZE = 128  # pixels
OMITTED_GROUPS = {"flags", "symbols", "component"}
CONCEPTS_FILE = Path(__file__).parent / "concepts.txt"


@dataclass(frozen=True)
class Concept:
    key: str  # code points, lower case, without variation selectors
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]  # synonyms and keywords, without the name
    name_zh: str
    tags_zh: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """One picture: a concept drawn in one style."""

    style: str
    concept: Concept


def make_artwork(run: Path, styles: list[str], chosen: str) -> None:
    """`chosen`: "listed" for the names in concepts.txt, "all" for everything that is not left out."""
    concepts = load_concepts(run)
    if chosen == "listed":
        concepts = listed_concepts(concepts)
    drawings: list[Drawing] = []
    pictures: list[NDArray[np.uint8]] = []
    for style in styles:
        before = len(drawings)
        for concept, picture in draw(run, style, concepts):
            drawings.append(Drawing(style, concept))
            pictures.append(picture)
        log.info("%s: %d pictures", style, len(drawings) - before)
    np.save(run / "artwork.npy", np.stack(pictures))
    lines = [json.dumps(asdict(drawing), ensure_ascii=False) for drawing in drawings]
    (run / "artwork.jsonl").write_text("\n".join(lines), "utf-8")
    log.info("%d pictures of %d concepts", len(drawings), len({drawing.concept.key for drawing in drawings}))


def listed_concepts(concepts: list[Concept]) -> list[Concept]:
    """Those that concepts.txt names."""
    names = set(CONCEPTS_FILE.read_text("utf-8").split("\n")) - {""}
    unknown = names - {concept.name for concept in concepts}
    if unknown:
        raise ValueError(f"concepts.txt has names that {EMOJIBASE.name} does not know: {sorted(unknown)}")
    return [concept for concept in concepts if concept.name in names]


def load_artwork(run: Path) -> tuple[NDArray[np.uint8], list[Drawing]]:
    """Pictures (N, 128, 128, 4), straight alpha, memory-mapped; and what they show."""
    drawings = []
    for line in (run / "artwork.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        fields = record["concept"] | {k: tuple(record["concept"][k]) for k in ("tags", "tags_zh")}
        drawings.append(Drawing(record["style"], Concept(**fields)))
    return np.load(run / "artwork.npy", mmap_mode="r"), drawings


def load_concepts(run: Path) -> list[Concept]:
    base, lib = fetch(EMOJIBASE, run), fetch(EMOJILIB, run)
    words: dict[str, list[str]] = _json(lib / "dist/emoji-en-US.json")
    groups = _json(base / "meta/groups.json")
    chinese = {entry["hexcode"]: entry for entry in _json(base / "zh/data.json")}
    concepts = []
    for entry in _json(base / "en/data.json"):
        if "group" not in entry or groups["groups"][str(entry["group"])] in OMITTED_GROUPS:
            continue
        name = entry["label"].lower().replace("’", "'")
        emoji = entry["emoji"]
        found = [*entry.get("tags", []), *words.get(emoji, []), *words.get(emoji.replace("\ufe0f", ""), [])]
        tags = dict.fromkeys(tag.replace("_", " ") for tag in found if re.fullmatch(r"[A-Za-z0-9 _'-]{2,}", tag))
        zh = chinese.get(entry["hexcode"], {})
        concepts.append(
            Concept(
                key=_key(entry["hexcode"]),
                name=name,
                group=groups["groups"][str(entry["group"])],
                subgroup=groups["subgroups"][str(entry["subgroup"])],
                tags=tuple(tag for tag in tags if tag != name),
                name_zh=zh.get("label", ""),
                tags_zh=tuple(zh.get("tags", [])),
            )
        )
    return concepts


def draw(
    run: Path, style: str, concepts: list[Concept], size: int = SIZE
) -> Iterator[tuple[Concept, NDArray[np.uint8]]]:
    """RGBA pictures (size, size, 4) of those concepts that the style has."""
    folder = fetch(STYLES[style].package, run)
    if (folder / "icons.json").exists():
        return _draw_svgs(folder, concepts, _slugs(run, concepts), size)
    return _draw_files(folder / "assets", concepts, size)


def _draw_files(folder: Path, concepts: list[Concept], size: int) -> Iterator[tuple[Concept, NDArray[np.uint8]]]:
    files = {_key(file.stem): file for file in folder.iterdir()}
    for concept in concepts:
        file = files.get("-".join(point.zfill(4) for point in concept.key.split("-")))
        if file:
            image = Image.open(file).convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
            yield concept, np.asarray(image)


def _draw_svgs(
    folder: Path, concepts: list[Concept], slugs: dict[str, list[str]], size: int
) -> Iterator[tuple[Concept, NDArray[np.uint8]]]:
    import resvg_py  # only this stage needs it

    icon_set = _json(folder / "icons.json")
    icons = dict(icon_set["icons"])
    for alias, entry in icon_set.get("aliases", {}).items():
        if set(entry) == {"parent"} and entry["parent"] in icons:
            icons.setdefault(alias, icons[entry["parent"]])
    chars = folder / "chars.json"
    by_key = {_key(k): name for k, name in reversed(_json(chars).items())} if chars.exists() else {}
    for concept in concepts:
        # sets without a table of code points name their icons by slug, FxEmoji without dashes
        candidates = [by_key.get(concept.key, ""), *slugs[concept.key]]
        candidates.append(_slug(concept.name).replace("-", ""))
        icon = next((icons[name] for name in candidates if name in icons), None)
        if icon is None:
            continue
        width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {xmlns} viewBox="{box}">{icon["body"]}</svg>'
        image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))))
        square = Image.new("RGBA", (size, size))
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        picture = np.asarray(square)
        if picture[..., 3].any():
            yield concept, picture


def _slugs(run: Path, concepts: list[Concept]) -> dict[str, list[str]]:
    """Names under which icon sets may file a concept: Noto's and Twemoji's slugs, then its own name's."""
    slugs: dict[str, list[str]] = {concept.key: [] for concept in concepts}
    for style in ("noto", "twemoji"):
        for key, name in _json(fetch(STYLES[style].package, run) / "chars.json").items():
            slugs.get(_key(key), []).append(name)
    for concept in concepts:
        slugs[concept.key].append(_slug(concept.name))
    return slugs


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.replace("'", "")).strip("-")


def _key(hexcode: str) -> str:
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))
