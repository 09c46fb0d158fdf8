"""Files that are written whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder."""

import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger(__name__)


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
