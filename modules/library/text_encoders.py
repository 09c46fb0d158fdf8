"""Which text encoders there are in files of their own, for checkpoints that have none. Knows files and their names;
nothing of what is inside."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from modules.library.header import printable
from modules.library.roots import Root, as_roots, places_in
from modules.library.walking import natural

SUFFIXES = (".safetensors",)


class UnknownTextEncoder(LookupError):
    """No text encoder goes by this name."""

    def __init__(self, name: str, nearest: Sequence[str]):
        hint = f"; nearest: {', '.join(nearest)}" if nearest else "; put it into models/text_encoder"
        super().__init__(f"there is no text encoder {printable(name[:200])!r}{hint}")


class TextEncoderLibrary:
    """The text encoders of some folders. Looked for at each call: it is seldom called, and there are few."""

    def __init__(self, folders: Sequence[Path | Root]):
        self.roots = as_roots(folders)

    def list(self) -> tuple[Path, ...]:
        """In natural order; of two with one name the first."""
        found: dict[str, Path] = {}
        for _, place in places_in(self.roots, "text_encoder", SUFFIXES):
            for entry in place.files:
                if entry.name not in place.outside:
                    found.setdefault(printable(entry.name), Path(entry.path))
        return tuple(found[name] for name in sorted(found, key=natural))

    def chosen(self, names: str) -> tuple[Path, ...]:
        """`names`: of files, in any case, with or without suffix, with commas between. Raises UnknownTextEncoder."""
        files = self.list()
        by_name = {os.path.splitext(path.name)[0].casefold(): path for path in files[::-1]}
        by_name |= {path.name.casefold(): path for path in files}
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        for name in wanted:
            if name.casefold() not in by_name:
                nearest = get_close_matches(name, [path.name for path in files], n=3, cutoff=0.3)
                raise UnknownTextEncoder(name, nearest)
        return tuple(by_name[name.casefold()] for name in wanted)
