"""Where everything lies. Standard library only; the one place that turns path flags into folders."""

import os
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class PathError(ValueError):
    """A path flag that cannot be obeyed; the message is one sentence for the user."""


@dataclass(frozen=True)
class Paths:
    """All absolute. Output folders are settings, relative to `data_dir`."""

    root: Path  # the program: modules/, models/ with the starter
    data_dir: Path  # --data-dir, else root: config.json, outputs/, data/
    models_dir: Path  # --models-dir, else data_dir/models
    database: Path
    cache: Path
    config: Path  # --ui-settings-file, else data_dir/config.json


def paths_from(flags: Namespace, root: Path = ROOT) -> Paths:
    """Makes the folders that are missing; raises `PathError` for one that cannot be, or cannot be written to."""
    data_dir = _folder("--data-dir", flags.data_dir) if flags.data_dir else root
    if flags.models_dir:
        models_dir = _folder("--models-dir", flags.models_dir)
    else:
        models_dir = data_dir / "models"
    if flags.ckpt_dir and not absolute(flags.ckpt_dir).is_dir():
        raise PathError(f"--ckpt-dir: there is no folder {absolute(flags.ckpt_dir)}; make it, or correct the flag")
    if flags.ckpt and not absolute(flags.ckpt).is_file():
        raise PathError(f"--ckpt: there is no file {absolute(flags.ckpt)}; correct the flag, or leave it out")
    if bool(flags.tls_keyfile) != bool(flags.tls_certfile):
        raise PathError("--tls-keyfile and --tls-certfile belong together: give both, or neither")
    for flag, given in (("--tls-keyfile", flags.tls_keyfile), ("--tls-certfile", flags.tls_certfile)):
        if given and not absolute(given).is_file():
            raise PathError(f"{flag}: there is no file {absolute(given)}; correct the flag")
    cache = data_dir / "data" / "cache"
    _make(cache, "--data-dir" if flags.data_dir else "the data folder")
    _try_to_write(cache.parent, "--data-dir" if flags.data_dir else "the data folder")
    config = _file("--ui-settings-file", flags.ui_settings_file) if flags.ui_settings_file else None
    return Paths(
        root=root,
        data_dir=data_dir,
        models_dir=models_dir,
        database=data_dir / "data" / "easel.db",
        cache=cache,
        config=config or data_dir / "config.json",
    )


def absolute(text: str) -> Path:
    """A path as the user typed it: `~` is their home, anything relative counts from where they stand."""
    return Path(os.path.abspath(Path(text).expanduser()))


def _folder(flag: str, text: str) -> Path:
    folder = absolute(text)
    _make(folder, flag)
    return folder


def _file(flag: str, text: str) -> Path:
    file = absolute(text)
    if file.is_dir():
        raise PathError(f"{flag}: {file} is a folder; name a file")
    _make(file.parent, flag)
    return file


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise PathError(f"{flag}: {folder} is a file; name a folder") from error
    except NotADirectoryError as error:
        raise PathError(f"{flag}: a part of {folder} is a file; name a folder") from error
    except OSError as error:
        raise PathError(f"{flag}: the folder {folder} cannot be made: {error.strerror}") from error


def _try_to_write(folder: Path, flag: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PathError(f"{flag}: nothing can be written into {folder}: {error.strerror}") from error
