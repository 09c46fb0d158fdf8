"""Going through a folder of models: in the order in which people count, into no folder twice, and through links only
where they lead into a folder that the user named."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    outside: frozenset[str] = frozenset()  # names of the files that are links to elsewhere: not to be opened


OUTSIDE = "is a link that leads out of the folders of models; start with --model-tree and the folder that it leads to"


class Bounds:
    """The folders that links may lead into: those that the user named, wherever they really are."""

    def __init__(self, folders: Iterable[str | Path]):
        self._real = tuple(dict.fromkeys(os.path.realpath(folder) for folder in folders))

    def hold(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._real)


def places(
    folder: str | Path,
    endings: tuple[str, ...],
    is_whole: Callable[[Entries], bool] = lambda entries: False,
    enters: Callable[[str, str], bool] = lambda folder, name: True,
    bounds: Bounds | None = None,
    seen: set[tuple[int, int]] | None = None,
) -> Iterator[Place]:
    """The folder and all below it, a folder before those in it. `endings`: of file names, in lower case; white space
    after them does not count, and names that begin with a dot are none. `enters`: whether a folder is gone into, by
    that in which it lies and its name. `bounds`: where links may lead, by default into this folder. `seen`: folders
    that are not gone into again, by device and inode. A folder that cannot be listed is told in the log and left out,
    one that is not there is nothing."""
    seen = set() if seen is None else seen
    bounds = bounds or Bounds([folder])
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
        files, folders, outside = [], [], set()
        for entry in entries:
            is_file = entry.name.lower().rstrip().endswith(endings)
            if is_file and not entry.name.startswith("."):
                files.append(entry)
                if entry.is_symlink() and not bounds.hold(entry.path):
                    outside.add(entry.name)
            elif not is_file and _is_folder(entry) and enters(here, entry.name):
                if entry.is_symlink() and not bounds.hold(entry.path):
                    log.warning("the folder %s %s", printable(entry.path), OUTSIDE)
                else:
                    folders.append(entry)
        files.sort(key=lambda entry: natural(entry.name))
        yield Place(here, entries, files, False, frozenset(outside))
        folders.sort(key=lambda entry: natural(entry.name), reverse=True)
        stack += [(below.path, depth + 1) for below in folders]


class Budget:
    """Time for looking into new files. Only that counts: were the walk through old ones to use it up, those at the end
    of a huge folder would never be looked at."""

    def __init__(self, seconds: float):
        self._left = seconds

    @property
    def is_spent(self) -> bool:
        return self._left < 0

    @contextmanager
    def spending(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._left -= time.monotonic() - started


def natural(name: str) -> tuple[str | int, ...]:
    """Order as people count: v2 before v10."""
    pieces = _NUMBERS.split(name.casefold())
    return tuple(int(piece) if number % 2 else piece for number, piece in enumerate(pieces))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a loop
        return False
