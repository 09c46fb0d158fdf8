"""Small pictures of models: made once of the preview beside a file, or of the one inside of it, and kept. Foreign
pictures are opened by the one decoder."""

import hashlib
import io
import logging
import os
from contextlib import suppress
from pathlib import Path

from PIL import Image

from modules.imaging.decode import MAX_BYTES, ImageError, decode, decode_base64
from modules.library.header import ModelFileError, open_regular, read_header
from modules.runtime.files import write_whole

log = logging.getLogger(__name__)

SIDES = (192, 384, 768)  # pixels of the longer side
MOST_KEPT = 20_000  # files; then the oldest go
MAX_PIXELS = 64_000_000


class Previews:
    """`folder`: a cache, which may be emptied at any time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._written = 0

    def small(self, source: Path, side: int) -> tuple[bytes, str]:
        """(WebP, its mark) of a picture, or of a safetensors file that has one inside. Raises ImageError,
        ModelFileError."""
        try:
            status = source.stat()
        except OSError as error:
            raise ModelFileError(source, f"is not there any more ({error.strerror or error})") from None
        mark = self.mark(source, status, side)
        path = self.folder / f"{mark}.webp"
        with suppress(OSError):
            return path.read_bytes(), mark
        data = _shrunk(_open(source), side)
        self._keep(path, data)
        return data, mark

    def mark(self, source: Path, status: os.stat_result, side: int) -> str:
        """Changes when the picture does."""
        state = f"{status.st_size} {status.st_mtime_ns} {side}".encode()
        return hashlib.sha256(os.fsencode(source) + b"\0" + state).hexdigest()[:32]

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
            self._written += 1
            if self._written % 500 == 1:
                self._forget()
        except OSError as error:
            log.warning("a small preview cannot be kept: %s", error.strerror or error)

    def _forget(self) -> None:
        with os.scandir(self.folder) as found:
            files = sorted((entry.stat().st_mtime_ns, entry.path) for entry in found)
        for _, path in files[: max(0, len(files) - MOST_KEPT)]:
            os.unlink(path)


def _open(source: Path) -> Image.Image:
    if source.suffix.lower() == ".safetensors":
        text = read_header(source).metadata.get("modelspec.thumbnail", "")
        return decode_base64(text, max_pixels=MAX_PIXELS)
    with os.fdopen(open_regular(source), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"the preview has more than {MAX_BYTES >> 20} MiB")
    return decode(data, max_pixels=MAX_PIXELS)


def _shrunk(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=4)
    return buffer.getvalue()
