"""Files that are written whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder."""

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

_GROWING = re.compile(r"\.easel-[0-9a-f]{16}\.part")


def write_whole(path: Path, data: bytes) -> None:
    """Old or new content under `path`, never a part, also after kill -9 or a power cut. Raises OSError; the temporary
    file is gone then. An existing file keeps its permissions, a new one gets what the umask leaves."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def growing(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A large file, written piece by piece inside the `with`; it is under `path` when that has ended well, and nowhere
    otherwise. Without `overwrite`, a file that is there raises FileExistsError, also one that came meanwhile."""
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary = path.with_name(f".easel-{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # under its lock, so that no other process takes it for left behind
                _rename(temporary, path, overwrite)
        if os.name == "nt":  # Windows renames no open file
            _rename(temporary, path, overwrite)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_left_behind(folder: Path) -> list[Path]:
    """Deletes what `growing` was writing there when its process was killed; files of processes that live stay."""
    removed = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _GROWING.fullmatch(path.name):
            try:
                with path.open("r+b") as file:
                    if not _lock(file):
                        continue
                path.unlink()
            except OSError as error:
                log.warning("%s is left of an earlier run and can't be deleted: %s", path.name, error.strerror or error)
                continue
            removed.append(path)
    return removed


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    elif os.name == "nt":
        os.rename(temporary, path)  # refuses what is there
    else:
        _rename_to_free_name(temporary, path)


def _rename_to_free_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
    except OSError as error:  # a file system without hard links: almost as good
        log.debug("no hard link at %s: %s", path.parent, error)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Until it is closed or its process ends. False: another process may have it."""
    try:
        import fcntl
    except ImportError:  # Windows deletes no open file, which is as good
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it has, or this is a network file system that has no locks
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Makes a rename in it durable, where the file system can."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network and FUSE file systems cannot; the file itself is synced
        log.debug("no fsync of %s: %s", folder, error)
    finally:
        os.close(handle)


def _keep_mode(path: Path, temporary: Path) -> None:
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return
    if temporary.stat().st_mode & 0o777 != mode:
        os.chmod(temporary, mode)
