"""ControlNets, text encoders and UNets without the rest: parts that lie in folders of their own. Knows that they are
there and what their headers tell; nothing of what they are used for. `Looker` does the same for any other file."""

import logging
import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.library import gguf
from modules.library.cache import FileCache, FileFacts
from modules.library.facts import Facts, Kind, look
from modules.library.folders import STEMS
from modules.library.hashes import Fingerprint
from modules.library.header import ModelFileError, printable, sniff
from modules.library.roots import Root, Roots, as_roots, places_in
from modules.library.walking import OUTSIDE, Budget, natural

log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("controlnet", "text_encoder", "unet")
SUFFIXES = (".safetensors", gguf.SUFFIX, ".pth", ".pt", ".ckpt", ".bin")
LOOK_BUDGET_S = 1.5  # for the headers of new files in one listing; the rest is looked at in the next
SORT_BUDGET_S = 10.0  # for those of one folder where kinds lie mixed: without them nothing of it is listed


@dataclass(frozen=True)
class Component:
    kind: Kind
    path: Path
    root: Root
    fingerprint: Fingerprint
    facts: Facts = Facts()  # empty until its header was read
    problem: str | None = None

    @property
    def name(self) -> str:
        """The file's; of those that are all called alike, their folder's."""
        if self.path.stem.partition(".")[0] in STEMS:
            return printable(self.root.folder_of(self.path).rpartition("/")[2]) or printable(self.path.stem)
        return printable(self.path.stem)


class ComponentLibrary:
    """Thread-safe."""

    def __init__(self, roots: Roots, cache: FileCache):
        self.roots = {kind: as_roots(roots.get(kind, ())) for kind in KINDS}
        self._looker = Looker(cache)
        self._lock = threading.Lock()
        self._found: dict[Kind, tuple[Component, ...]] = {}

    def list(self, kind: Kind) -> tuple[Component, ...]:
        """In natural order, broken ones with their problem; scans at the first call only."""
        found = self._found.get(kind)
        return found if found is not None else self.refresh(kind)

    def refresh(self, kind: Kind) -> tuple[Component, ...]:
        with self._lock:
            files: list[tuple[Root, Path]] = []
            found: list[Component] = []
            for root, place in places_in(self.roots[kind], kind, SUFFIXES):
                for entry in place.files:
                    if entry.name in place.outside:
                        found.append(Component(kind, Path(entry.path), root, Fingerprint(0, 0, 0), problem=OUTSIDE))
                    else:
                        files.append((root, Path(entry.path)))
            looked = self._looker.look(path for _, path in files)
            found += [Component(kind, path, root, *looked[path]) for root, path in files if path in looked]
            self._found[kind] = tuple(sorted(found, key=lambda one: natural(one.name)))
            return self._found[kind]


class Looker:
    """What headers tell, from the cache where the file is as it was."""

    def __init__(self, cache: FileCache):
        self.cache = cache

    def kinds(self, paths: Sequence[Path]) -> Mapping[Path, str]:
        """What each file is by its content; those that are no model are left out."""
        return {path: facts.kind for path, (_, facts, _) in self.look(paths, SORT_BUDGET_S).items() if facts.kind}

    def look(
        self, paths: Iterable[Path], budget_s: float = LOOK_BUDGET_S
    ) -> dict[Path, tuple[Fingerprint, Facts, str | None]]:
        """(fingerprint, facts, problem) of each; files that are gone are left out. The facts of those that the time
        does not suffice for are empty: ask again."""
        found: dict[Path, tuple[Fingerprint, Facts, str | None]] = {}
        news: list[tuple[Path, FileFacts]] = []
        budget = Budget(budget_s)
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:
                if path.is_symlink():
                    found[path] = Fingerprint(0, 0, 0), Facts(), f"a link that leads nowhere ({error.strerror})"
                continue
            now = Fingerprint.of(status)
            known = self.cache.get(path, now)
            if known is None or not known.checked:
                if budget.is_spent:
                    found[path] = now, Facts(), None
                    continue
                with budget.spending():
                    facts, problem = _looked(path, status)
                old = known or FileFacts(now)
                known = FileFacts(now, old.sha256, problem is None, problem, old.body_sha256, facts)
                if problem is None:
                    news.append((path, known))
            found[path] = now, known.facts, known.problem
        self.cache.put(news)
        return found


def _looked(path: Path, status: os.stat_result) -> tuple[Facts, str | None]:
    """Anything but a file is not opened; a file that is no model is refused in a sentence."""
    try:
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return Facts(), "this file is empty: the download failed; download it again"
        facts = look(path)
        if facts.format == "PyTorch":
            with path.open("rb") as file:
                start = file.read(256)
            if start[:4] != b"PK\3\4" and start[:1] != b"\x80":
                return Facts(), sniff(start) or "this is no file of PyTorch"
    except ModelFileError as error:
        return Facts(), error.reason
    except OSError as error:
        return Facts(), f"cannot be read: {error.strerror or error}"
    return facts, None
