"""What of a download lies on the disk before it is one: NAME.part with the bytes (a folder of them for a model of many
files), and NAME.part.json with what is needed to go on after a restart. Neither has an ending that a model has. No
token and no address's secret is in it."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import RemoteFile, disk_error
from modules.library.downloads.naming import safe_name, safe_relative
from modules.library.header import printable
from modules.library.walking import places
from modules.runtime.files import sync_folder, write_whole

log = logging.getLogger(__name__)

ENDING = ".part.json"
MOST_STATE = 2 * 2**20  # bytes
MOST_FILES = 500


@dataclass(frozen=True)
class Order:
    """What is being downloaded, to where, and what is known of it."""

    id: str
    what: str  # asks for it again
    source: str
    title: str
    kind: str
    target: Path  # the file or folder that it becomes
    files: tuple[RemoteFile, ...]
    is_folder: bool = False
    done: tuple[str, ...] = ()  # files of a folder that are whole and checked
    spoiled: bool = False  # what is there is not the file: it starts anew
    keyless: bool = False  # its address held a secret that is not written down
    facts: dict[str, Any] | None = None  # for the sidecars: words, base_model, page, preview, description, info

    @property
    def state_file(self) -> Path:
        return self.target.with_name(self.target.name + ENDING)

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    def part_of(self, file: RemoteFile) -> Path:
        return self.part / f"{file.name}.part" if self.is_folder else self.part

    @property
    def size(self) -> int | None:
        sizes = [file.size if file.size is not None else file.total for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def knowing(self, file: RemoteFile) -> "Order":
        """With what was learned of one of its files."""
        return replace(self, files=tuple(file if one.name == file.name else one for one in self.files))

    def anew(self) -> "Order":
        """As if nothing had come yet."""
        files = tuple(replace(file, total=None, etag=None, modified=None) for file in self.files)
        return replace(self, spoiled=False, done=(), files=files)

    def going_on_from(self, kept: "Order") -> "Order":
        """With what is known of the parts of an earlier order for the same."""
        files = tuple(
            replace(new, total=old.total, etag=old.etag, modified=old.modified)
            for new, old in zip(self.files, kept.files, strict=True)
        )
        return replace(self, id=kept.id, files=files, done=kept.done, spoiled=kept.spoiled)

    def is_of_the_same(self, other: "Order") -> bool:
        def marks(order: "Order") -> list[object]:
            return [file.sha256 or file.as_state()["url"] for file in order.files]

        return self.is_folder == other.is_folder and marks(self) == marks(other)

    def received(self) -> int:
        """Bytes that are on the disk."""
        return sum(_size(self.part_of(file)) for file in self.files)


def save(order: Order) -> None:
    """Raises DownloadError where it cannot be written."""
    kept = {
        "version": 1,
        "id": order.id,
        "what": order.what,
        "source": order.source,
        "title": order.title,
        "kind": order.kind,
        "files": [file.as_state() for file in order.files],
        "is_folder": order.is_folder,
        "done": list(order.done),
        "spoiled": order.spoiled,
        "facts": order.facts,
    }
    try:
        order.target.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(kept, indent=1).encode("ascii")
        if len(data) > MOST_STATE:  # Civitai's own words may be long; they are not needed to go on
            data = json.dumps({**kept, "facts": None}).encode("ascii")
        write_whole(order.state_file, data)
    except OSError as error:
        raise disk_error(error) from None


def load(state_file: Path, kind: str) -> Order | None:
    """None, and a line in the log, for what is no such file. It may come from anywhere: nothing in it is believed that
    would lead elsewhere."""
    try:
        if state_file.stat().st_size > MOST_STATE:
            raise ValueError("too large")
        content = json.loads(state_file.read_text("utf-8"))
        name = state_file.name.removesuffix(ENDING)
        files = tuple(_file(one) for one in content["files"][:MOST_FILES])
        is_folder = content["is_folder"] is True
        if safe_name(name) != name or not files or not (is_folder or len(files) == 1):
            raise ValueError("no such state")
        if is_folder and any(safe_relative(file.name) != file.name for file in files):
            raise ValueError("names that lead out of the folder")
        facts = content.get("facts")
        return Order(
            id=content["id"] if re.fullmatch(r"[0-9a-f]{16}", content["id"]) else os.urandom(8).hex(),
            what=str(content["what"]),
            source=str(content["source"]),
            title=str(content["title"]),
            kind=kind,
            target=state_file.with_name(name),
            files=files,
            is_folder=is_folder,
            done=tuple(str(one) for one in content["done"]),
            spoiled=content["spoiled"] is True,
            keyless=any(one.get("keyless") for one in content["files"]),
            facts=facts if isinstance(facts, dict) else None,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is no state of a download: %s", printable(str(state_file)), type(error).__name__)
        return None


def _file(content: dict[str, Any]) -> RemoteFile:
    known = {field.name for field in fields(RemoteFile)} - {"token"}
    file = RemoteFile(**{key: value for key, value in content.items() if key in known})
    texts = (file.url, file.name, file.sha256, file.etag, file.modified)
    if not all(isinstance(text, str | None) for text in texts) or not all(
        value is None or type(value) is int for value in (file.size, file.total)
    ):
        raise TypeError
    if any(text and re.search(r"[\x00-\x1f\x7f]", text) for text in texts):
        raise ValueError
    return file


def left_over(folders: Iterable[tuple[str, Path]]) -> Iterator[Order]:
    """Of (kind, folder): what an earlier run, or a cancel that kept it, left there."""
    seen = set()
    for kind, folder in folders:
        for place in places(folder, (ENDING,)):
            for entry in place.files:
                if entry.path not in seen and (order := load(Path(entry.path), kind)):
                    yield order
                seen.add(entry.path)


def drop(order: Order) -> None:
    """What came of it so far."""
    if order.is_folder and not order.part.is_symlink():
        shutil.rmtree(order.part, ignore_errors=True)
    else:
        order.part.unlink(missing_ok=True)
    order.state_file.unlink(missing_ok=True)


def put_in_place(order: Order) -> None:
    """The parts become the model; nothing that is there is overwritten. Raises DownloadError."""
    if os.path.lexists(order.target):
        raise DownloadError(f"something called {order.target.name} appeared meanwhile; move it, then go on with this")
    try:
        if order.is_folder:
            for file in order.files:
                part = order.part_of(file)
                if part.exists():  # else an earlier try came so far
                    os.rename(part, part.with_name(part.name.removesuffix(".part")))
        os.rename(order.part, order.target)
        sync_folder(order.target.parent)
        order.state_file.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
