"""Which VAE files exist, and which one a checkpoint gets, by A1111's rules. Knows files and their names; nothing of
what is inside."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from modules.library.cache import FileCache
from modules.library.checkpoints import Checkpoint
from modules.library.hashes import Fingerprint
from modules.library.header import ModelFileError, printable
from modules.library.roots import Root, as_roots, places_in
from modules.library.walking import OUTSIDE, natural

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".ckpt")
BESIDE = tuple(f".vae{suffix}" for suffix in SUFFIXES)  # of VAEs among the checkpoints
AUTOMATIC, NONE = "Automatic", "None"
MAX_METADATA = 2**20  # bytes of the .json beside a checkpoint


class UnknownVae(LookupError):
    """No VAE goes by this name."""

    def __init__(self, name: str, nearest: Sequence[str]):
        self.name, self.nearest = name, tuple(nearest)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"there is no VAE {printable(name[:200])!r}{hint}")


@dataclass(frozen=True)
class VaeFile:
    path: Path
    fingerprint: Fingerprint
    sha256: str | None = None  # where it is known
    shown: str = ""  # with its folder, where another one has its name

    @property
    def name(self) -> str:
        """With its suffix: what settings and infotexts say."""
        return self.shown or printable(self.path.name)

    @property
    def shorthash(self) -> str | None:
        """The 10 characters that stand in infotexts."""
        return self.sha256[:10] if self.sha256 else None


class VaeLibrary:
    """The VAEs of some folders, and those named NAME.vae.* among the checkpoints. Thread-safe."""

    def __init__(
        self, folders: Sequence[Path | Root], checkpoint_folders: Sequence[Path | Root], cache: Path | FileCache
    ):
        self.roots, self.checkpoint_roots = as_roots(folders), as_roots(checkpoint_folders)
        self._cache = cache if isinstance(cache, FileCache) else FileCache(cache)
        self._lock = threading.Lock()
        self._found: dict[str, VaeFile] | None = None
        self._listed: tuple[VaeFile, ...] = ()

    def list(self) -> tuple[VaeFile, ...]:
        """In natural order, one for each name; scans at the first call only."""
        self._by_name()
        return self._listed

    def refresh(self) -> tuple[VaeFile, ...]:
        found: dict[str, VaeFile] = {}
        for label, file in self._scan():
            if label and file.name in found:  # of two in our own folders the last counts, as in A1111
                file = replace(file, shown=f"{label}/{file.name}")
            found[file.name] = file
        with self._lock:
            self._found = {name: found[name] for name in sorted(found, key=natural)}
            self._listed = tuple(self._found.values())
        return self.list()

    def find(self, name: str) -> VaeFile:
        """By its file's name, in any case, with or without suffix. Raises UnknownVae."""
        for _ in range(2):
            if found := self._find(name):
                return found
            self.refresh()  # it may be new
        raise UnknownVae(name, get_close_matches(name, [file.name for file in self.list()], n=3, cutoff=0.3))

    def hashed(self, vae: VaeFile, watch: Callable[[int, int], None] | None = None) -> VaeFile:
        """With its sha256, and the fingerprint of the file as it is now. Raises ModelFileError."""
        return replace(_file(vae.path), sha256=self._cache.digests(vae.path, watch).sha256)

    def choose(
        self, checkpoint: Checkpoint, setting: str, overrides: bool = True, always: Path | None = None
    ) -> VaeFile | None:
        """The VAE for this checkpoint; None: its own.

        `setting`: sd_vae; `overrides`: sd_vae_overrides_per_model_preferences; `always`: the flag --vae-path. Raises
        UnknownVae, ModelFileError.
        """
        if always is not None:
            return _file(always)
        automatic = setting.casefold() in ("automatic", "auto", "")
        if overrides and not automatic:
            return None if setting == NONE else self.find(setting)
        preferred = preference_of(checkpoint.path)
        if preferred == NONE:
            return None
        if preferred and (found := self._find(preferred)):
            return found
        if preferred:
            log.warning("the VAE %r, which %s asks for, is not there", preferred, checkpoint.name)
        beside = next((file for file in self.list() if file.name.startswith(checkpoint.model_name)), None)
        if beside or automatic or setting == NONE:
            return beside
        return self.find(setting)

    def _by_name(self) -> dict[str, VaeFile]:
        if self._found is None:
            self.refresh()
        assert self._found is not None
        return self._found

    def _find(self, name: str) -> VaeFile | None:
        wanted = name.strip().casefold()
        files = self._by_name()
        if name in files:
            return files[name]
        named = {own.casefold(): file for own, file in files.items()}
        return named.get(wanted) or {os.path.splitext(own)[0]: file for own, file in named.items()}.get(wanted)

    def _scan(self) -> Iterator[tuple[str, VaeFile]]:
        for roots, endings in ((self.checkpoint_roots, BESIDE), (self.roots, SUFFIXES)):
            for root, place in places_in(roots, "vae", endings):
                for entry in place.files:
                    try:
                        if entry.name in place.outside:
                            raise ModelFileError(Path(entry.path), OUTSIDE)
                        yield root.label, _file(Path(entry.path))
                    except ModelFileError as error:
                        log.warning("%s", error)


def preference_of(checkpoint: Path) -> str | None:
    """The VAE that the user chose for this checkpoint, in the .json beside it; None: no choice."""
    path = checkpoint.with_suffix(".json")
    try:
        if not path.is_file() or path.stat().st_size > MAX_METADATA:
            return None
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s beside the checkpoint cannot be read: %s", printable(path.name), error)
        return None
    chosen = content.get("vae") if isinstance(content, dict) else None
    return chosen if isinstance(chosen, str) and chosen not in ("", AUTOMATIC) else None


def _file(path: Path) -> VaeFile:
    try:
        return VaeFile(path, Fingerprint.of(path.stat()))
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
