"""Going through a folder of models: in the order in which people count, through links, into no folder twice."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.library.header import printable

log = logging.getLogger(__name__)

MAX_DEPTH = 32  # folders
_NUMBERS = re.compile(r"(\d{1,18})")

Entries = Sequence[os.DirEntry[str]]


@dataclass(frozen=True, slots=True)
class Place:
    """One folder on the way."""

    path: str
    entries: Entries  # all that is in it
    files: Entries  # those with one of the endings, in natural order
    is_whole: bool  # it is a model itself, and what lies in it is its own


def places(
    folder: str | Path, endings: tuple[str, ...], is_whole: Callable[[Entries], bool] = lambda entries: False
) -> Iterator[Place]:
    """The folder and all below it, a folder before those in it. `endings`: of file names, in lower case; white space
    after them does not count. A folder that cannot be listed is told in the log and left out, one that is not there is
    nothing."""
    seen: set[tuple[int, int]] = set()
    stack = [(os.fspath(folder), 0)]
    while stack:
        here, depth = stack.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen or depth > MAX_DEPTH:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as found:
                entries = list(found)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("the folder %s cannot be listed: %s", printable(here), error.strerror or error)
            continue
        if depth and is_whole(entries):
            yield Place(here, entries, (), is_whole=True)
            continue
        files, folders = [], []
        for entry in entries:
            if entry.name.lower().rstrip().endswith(endings):
                files.append(entry)
            elif _is_folder(entry):
                folders.append(entry)
        yield Place(here, entries, sorted(files, key=lambda entry: natural(entry.name)), is_whole=False)
        folders.sort(key=lambda entry: natural(entry.name), reverse=True)
        stack += [(below.path, depth + 1) for below in folders]


def natural(name: str) -> tuple[str | int, ...]:
    """Order as people count: v2 before v10."""
    pieces = _NUMBERS.split(name.casefold())
    return tuple(int(piece) if number % 2 else piece for number, piece in enumerate(pieces))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a loop
        return False
