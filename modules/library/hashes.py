"""Hashes of model files: the sha256 that names a model everywhere, and the short hash of A1111's first months."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modules.library.header import ModelFileError, open_regular

CHUNK = 4 * 2**20  # bytes


@dataclass(frozen=True)
class Fingerprint:
    """What tells, without reading it, whether a file is still the same."""

    size: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(status: os.stat_result) -> "Fingerprint":
        return Fingerprint(status.st_size, status.st_mtime_ns, status.st_ino)


def sha256_of(path: Path, watch: Callable[[int, int], None] | None = None) -> str:
    """`watch(done, total)` is called with bytes now and then, and may raise to stop. A file that changes is refused."""
    handle = open_regular(path)
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = Fingerprint.of(os.fstat(handle))
        digest, done = hashlib.sha256(), 0
        buffer = bytearray(CHUNK)
        while done <= before.size:  # beyond it, the file grows while we read, perhaps for ever
            try:
                count = file.readinto(buffer) or 0
            except OSError as error:
                raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
            if not count:
                break
            digest.update(memoryview(buffer)[:count])
            done += count
            if watch:
                watch(done, before.size)
        if Fingerprint.of(os.fstat(handle)) != before:
            raise ModelFileError(path, "changed while it was read; is it still being copied or downloaded?")
    return digest.hexdigest()


def legacy_hash(path: Path) -> str:
    """The 8 characters that pictures of 2022 carry: of 64 KiB from the second MiB on, so files may share it."""
    handle = open_regular(path)
    with os.fdopen(handle, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
