"""Pictures that requests start from (init images, masks): kept once each under the hash of their bytes, so that a
request can name them and a queued job finds them after a restart. Doors put decoded pictures in; the engine takes them
out."""

import hashlib
import io
import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from modules.runtime.files import write_whole

KEPT_S = 24 * 3600  # pictures that no job names are kept so long: the job may be about to come
_ID = re.compile(r"[0-9a-f]{64}")


class UnknownPicture(ValueError):
    """There is no such input picture (any more)."""


class Inputs:
    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, image: Image.Image) -> str:
        """The picture's id. The same picture again has the same id, and is kept once."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
        id = hashlib.sha256(data).hexdigest()
        path = self._path(id)
        if path.is_file():
            os.utime(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        return id

    def get(self, id: str) -> Image.Image:
        """Raises UnknownPicture."""
        data = self.read(id)
        try:
            image = Image.open(io.BytesIO(data), formats=["PNG"])
            image.load()
        except OSError as error:
            raise _gone(id, error) from error
        return image

    def read(self, id: str) -> bytes:
        """The picture as a PNG file. Raises UnknownPicture."""
        if not _ID.fullmatch(id):
            raise UnknownPicture(f"{id[:80]!r} is not the id of a picture")
        try:
            return self._path(id).read_bytes()
        except OSError as error:
            raise _gone(id, error) from error

    def __contains__(self, id: str) -> bool:
        return bool(_ID.fullmatch(id)) and self._path(id).is_file()

    def keep_only(self, wanted: Collection[str]) -> None:
        """Deletes the pictures that no job names, unless they are new."""
        before = time.time() - KEPT_S
        for path in self.folder.glob("??/*.png"):
            if path.stem not in wanted and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        return self.folder / id[:2] / f"{id}.png"


def _gone(id: str, error: OSError) -> UnknownPicture:
    return UnknownPicture(f"the input picture {id[:12]}… is gone or damaged ({type(error).__name__}); send it again")
