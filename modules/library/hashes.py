"""Hashes of model files: the sha256 that names a model everywhere, that of the weights alone which names a LoRA, and
the short hash of A1111's first months."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


@dataclass(frozen=True)
class Digests:
    sha256: str  # of the whole file: AutoV2 is its first 10 characters
    body_sha256: str  # of what follows a safetensors header, so that new metadata keeps it: AutoV3 is its first 12


def digests_of(path: Path, watch: Callable[[int, int], None] | None = None) -> Digests:
    """Both in one reading. Of a file that is no safetensors file, body_sha256 is that of the whole, as in A1111.
    `watch(done, total)` is called with bytes now and then, and may raise to stop. A file that changes is refused."""
    start = body_start(path)
    whole, body = hashlib.sha256(), hashlib.sha256()
    with ThreadPoolExecutor(1) as beside:  # hashing lets other threads run: both together take as long as one
        for chunk, position in _chunks(path, watch):
            other = beside.submit(body.update, chunk[max(0, start - position) :])
            whole.update(chunk)
            other.result()
    return Digests(whole.hexdigest(), body.hexdigest())


def sha256_of(path: Path, watch: Callable[[int, int], None] | None = None) -> str:
    digest = hashlib.sha256()
    for chunk, _position in _chunks(path, watch):
        digest.update(chunk)
    return digest.hexdigest()


def body_sha256_of(path: Path, watch: Callable[[int, int], None] | None = None) -> str:
    """What names a LoRA: its first 12 characters stand in the infotext (AutoV3)."""
    start, digest = body_start(path), hashlib.sha256()
    for chunk, position in _chunks(path, watch):
        digest.update(chunk[max(0, start - position) :])
    return digest.hexdigest()


def body_start(path: Path) -> int:
    """Where the weights begin: after the header of a safetensors file, else at 0."""
    if path.suffix.lower() != ".safetensors":
        return 0
    with os.fdopen(open_regular(path), "rb") as file:
        first, size = file.read(8), os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(first, "little")
    if len(first) < 8 or start > size:
        raise ModelFileError(path, "its header is longer than the file: incomplete, or no safetensors file")
    return start


def _chunks(path: Path, watch: Callable[[int, int], None] | None) -> Iterator[tuple[memoryview, int]]:
    """The bytes of a file piece by piece, and the position of each. A piece is valid until the next is asked for."""
    handle = open_regular(path)
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = Fingerprint.of(os.fstat(handle))
        buffer, done = bytearray(CHUNK), 0
        while done <= before.size:  # beyond it, the file grows while we read, perhaps for ever
            try:
                count = file.readinto(buffer) or 0
            except OSError as error:
                raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
            if not count:
                break
            yield memoryview(buffer)[:count], done
            done += count
            if watch:
                watch(done, before.size)
        if Fingerprint.of(os.fstat(handle)) != before:
            raise ModelFileError(path, "changed while it was read; is it still being copied or downloaded?")


def legacy_hash(path: Path) -> str:
    """The 8 characters that pictures of 2022 carry: of 64 KiB from the second MiB on, so files may share it."""
    handle = open_regular(path)
    with os.fdopen(handle, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
