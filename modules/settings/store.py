"""The file of the settings, config.json: A1111's keys, read with care and written whole or not at all. Keys that are
not ours stay in the file. Knows nothing of what a setting does."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules.runtime.files import write_whole
from modules.settings.schema import SECRETS, SETTINGS, SettingError, Settings

MAX_CONFIG_BYTES = 16 * 2**20


class SettingsStoreError(OSError):
    """config.json cannot be written; the message says why and what to do."""


class SettingsStore:
    """The one owner of config.json in a process; safe to use from many threads. `problems` are sentences about what was
    wrong with the file when it was loaded."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self.path = path
        self.problems: list[str] = []
        self._clock = clock
        self._lock = threading.Lock()
        self._data: dict[str, Any] = {}  # what the file holds: our valid keys and foreign ones
        self._current = self._load()

    @property
    def current(self) -> Settings:
        return self._current

    def update(self, mapping: Mapping[str, Any]) -> Settings:
        """Validates all, then writes all: SettingError or SettingsStoreError leave everything as it was."""
        with self._lock:
            changed = self._current.with_overrides(mapping)
            data = {**self._data, **{key: getattr(changed, key) for key in mapping}}
            write_config(self.path, data)
            self._data, self._current = data, changed
            return changed

    def _load(self) -> Settings:
        text, trouble = _read(self.path)
        if text is None and trouble is None:
            return Settings()  # no file yet
        data, damage = ({}, trouble) if text is None else _parse(text)
        settings, wrong = _valid_settings(data)
        self._data = {key: value for key, value in data.items() if key not in wrong}
        if damage is None and not wrong:
            return settings
        kept = self._keep_bad_file()
        if damage:
            rest = "what could be read of it is kept" if self._data else "all settings are at their defaults"
            self.problems.append(f"{self.path.name} {damage}; {rest}{kept}")
        self.problems += [f"{self.path.name}: {reason}; it is back at its default" for reason in wrong.values()]
        if wrong and not damage:
            self.problems.append(f"the other settings are kept{kept}")
        return settings

    def _keep_bad_file(self) -> str:
        """Moves the file away and writes its good part anew; without that, every start would complain again."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        target = self.path.with_name(f"{self.path.name}.bad-{stamp}")
        count = 1
        while target.exists():
            target = self.path.with_name(f"{self.path.name}.bad-{stamp}-{count}")
            count += 1
        try:
            os.rename(self.path, target)
            if self._data:
                write_config(self.path, self._data)
        except OSError as error:
            return f"; and it could not be moved away ({error.strerror or error})"
        return f"; the old file is {target.name}"


def write_config(path: Path, data: Mapping[str, Any]) -> None:
    """Old or new, never torn."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(data, indent=4) + "\n").encode("ascii"))
        if any(data.get(key) for key in SECRETS):
            os.chmod(path, 0o600)  # the keys are this user's alone
    except OSError as error:
        raise SettingsStoreError(
            f"the settings could not be saved to {path}: {error.strerror or error}; check the disk and its permissions"
        ) from error


def _read(path: Path) -> tuple[str | None, str | None]:
    """Text and what is wrong; (None, None) where there is no file."""
    try:
        if path.is_dir():
            return None, "is a folder, not a file"
        if not path.exists():
            return None, None
        if not path.is_file():
            return None, "is not a regular file"
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return None, f"is larger than {MAX_CONFIG_BYTES >> 20} MiB, which no list of settings is"
        raw = path.read_bytes()
    except OSError as error:
        return None, f"cannot be read ({error.strerror or error})"
    if not raw.strip(b"\0 \t\r\n"):
        return None, "is empty" if not raw.strip() else "holds only NUL bytes"
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"), None
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), None if raw.count(0) == 0 else "holds NUL bytes"


def _parse(text: str) -> tuple[dict[str, Any], str | None]:
    try:
        data = json.loads(text)
    except ValueError as error:
        return _salvage(text), f"is damaged ({error})"
    except RecursionError:
        return {}, "is nested too deeply"
    if not isinstance(data, dict):
        return {}, f"must hold a JSON object, not {type(data).__name__}"
    return data, "has broken characters" if "\ufffd" in text else None


def _salvage(text: str) -> dict[str, Any]:
    """The whole `"key": value` pairs at the start of a half-written object."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}
    position = text.find("{") + 1
    while position:
        try:
            key, position = decoder.raw_decode(text, _skip(text, position, " \t\r\n,"))
            value, position = decoder.raw_decode(text, _skip(text, position, " \t\r\n:"))
        except (ValueError, RecursionError):
            break
        ended = text[_skip(text, position, " \t\r\n") :][:1]
        if not isinstance(key, str) or ended not in (",", "}"):
            break  # the last value may be cut short: 12 of 128
        found[key] = value
        if ended == "}":
            break
    return found


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _valid_settings(data: Mapping[str, Any]) -> tuple[Settings, dict[str, str]]:
    """The settings that hold, and why the others do not."""
    settings, wrong = Settings(), {}
    ours = {key: value for key, value in data.items() if key in SETTINGS}
    try:
        return settings.with_overrides(ours), {}
    except SettingError:
        for key, value in ours.items():
            try:
                settings = settings.with_overrides({key: value})
            except SettingError as error:
                wrong[key] = str(error)
    return settings, wrong
