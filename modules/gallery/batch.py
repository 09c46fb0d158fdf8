"""img2img over a folder: which pictures there are, which mask belongs to which, and what the results are called. Reads
no picture."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
MAX_PICTURES = 10_000
_NUMBERS = re.compile(r"(\d{1,18})")


class BatchError(ValueError):
    """A folder that cannot be worked through. The message is a sentence for the user."""


@dataclass(frozen=True)
class BatchItem:
    picture: Path
    mask: Path | None = None


def batch_of(pictures: Path, masks: Path | None = None) -> tuple[list[BatchItem], list[str]]:
    """The pictures of a folder in natural order, and sentences about those that are left out. A folder with one mask
    gives it to all; of several, each picture gets the one of its own name, in any format, and no other."""
    found = pictures_in(pictures)
    if masks is None:
        return [BatchItem(path) for path in found], []
    masks_found = pictures_in(masks)
    if len(masks_found) == 1:
        return [BatchItem(path, masks_found[0]) for path in found], []
    by_stem: dict[str, Path] = {}
    for mask in masks_found:
        by_stem.setdefault(mask.stem, mask)
    items = [BatchItem(path, by_stem[path.stem]) for path in found if path.stem in by_stem]
    lost = [path.name for path in found if path.stem not in by_stem]
    return items, [f"{_some(lost)}: left out, for there is no mask of that name in {masks}"] if lost else []


def pictures_in(folder: Path) -> list[Path]:
    """Those in the folder itself, in natural order. Raises BatchError where there is none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    except OSError as error:
        raise BatchError(f"the folder {folder} cannot be read: {error.strerror or error}") from None
    if not names:
        raise BatchError(f"there are no pictures ({', '.join(SUFFIXES)}) in {folder}")
    if len(names) > MAX_PICTURES:
        raise BatchError(f"there are {len(names)} pictures in {folder}; at most {MAX_PICTURES} are done at once")
    return [folder / name for name in sorted(names, key=_natural)]


def name_pattern(picture: Path, images: int) -> str:
    """samples_filename_pattern of what a picture becomes: its own name, numbered if `images` are made of it. Goes with
    save_images_replace_action "Add number suffix" and without save_to_dirs, as in A1111."""
    stem = picture.stem.replace("[", "(").replace("]", ")")  # brackets would be read as parts of a pattern
    return f"{stem}-[generation_number]" if images > 1 else stem


def _natural(name: str) -> list[str | int]:
    """Order as people count: 2 before 10."""
    pieces: list[str | int] = list(_NUMBERS.split(name.casefold()))
    pieces[1::2] = [int(piece) for piece in pieces[1::2]]
    return pieces


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
