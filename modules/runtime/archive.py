"""The zip archives that PyTorch's files are, checked before anything is unpacked. Imports no torch."""

import zipfile
from typing import IO

MAX_PICKLE = 64 * 2**20  # bytes of the part that describes the tensors
MAX_ENTRIES = 100_000
SLACK = 2**20  # bytes that an archive may be larger unpacked than packed


class PickleError(ValueError):
    """A file that cannot be read. The message is a sentence without the file's name."""


def check_archive(file: IO[bytes], size: int) -> None:
    """Raises PickleError for an archive that is damaged, or would unpack to more than it has."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise PickleError(f"a damaged zip archive ({error}); download it again") from None
    unpacked = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)  # PyTorch stores, it never packs
    if len(entries) > MAX_ENTRIES or packed or unpacked > size + SLACK:
        raise PickleError(
            f"its archive would grow from {size} to {unpacked} bytes in {len(entries)} parts; that is refused"
        )
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE for entry in entries):
        raise PickleError(f"its description has more than {MAX_PICKLE >> 20} MiB; that is refused")
