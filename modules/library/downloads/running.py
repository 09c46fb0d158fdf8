"""All downloads of one process: which run, wait, are paused or over. Two at a time, each in a thread of its own; what
was under way when the server ended is paused at the next start, for nothing is fetched unasked."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.library.downloads import parts, sidecars
from modules.library.downloads.errors import DownloadError, Stopped, WrongContent, has_secrets
from modules.library.downloads.fetch import RemoteFile, Watch, check_space, fetch
from modules.library.downloads.find import Hubs, find
from modules.library.downloads.naming import PICKLED, is_model, safe_name, safe_relative, suffix_of
from modules.library.downloads.parts import Order
from modules.library.downloads.reach import Reach
from modules.library.downloads.sources import Choice, Found
from modules.library.downloads.task import Download, State, Task
from modules.library.hashes import sha256_of
from modules.library.header import ModelFileError, printable, read_header
from modules.library.walking import places

log = logging.getLogger(__name__)

AT_ONCE = 2
MOST_KEPT = 200  # in the list
FOUND_FOR_S = 600.0  # that an answer of a hub is good
STOPS_WITHIN_S = 10.0


class UnknownDownload(LookupError):
    pass


class Downloads:
    """`folders()`: where each kind of model belongs. `publish` hears of every change. `finished(kind)` is called when a
    model is in place. `twin(sha256)`: a model that is known to have this hash. `check_pickle` raises ValueError for a
    file with code in it."""

    def __init__(
        self,
        reach: Reach,
        folders: Callable[[], Mapping[str, Path]],
        *,
        check_pickle: Callable[[Path], None],
        hubs: Hubs | None = None,
        publish: Callable[[Download], None] = lambda download: None,
        finished: Callable[[str], None] = lambda kind: None,
        twin: Callable[[str], Path | None] = lambda sha256: None,
    ):
        self.reach, self.folders, self.hubs = reach, folders, hubs or Hubs()
        self._check_pickle, self._publish, self._finished, self._twin = check_pickle, publish, finished, twin
        self._lock = threading.RLock()
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._found: OrderedDict[tuple[str, str | None], tuple[float, Found]] = OrderedDict()
        self._looked = False
        self._closed = False

    # --- asking --------------------------------------------------------------------------------------------------

    def resolve(self, text: str, file: str | None = None) -> Found:
        """What it is, before anything is fetched. Raises DownloadError."""
        key = (text.strip(), file)
        with self._lock:
            when, known = self._found.get(key, (0.0, None))
        if known is not None and time.monotonic() - when < FOUND_FOR_S:
            return known
        found = find(self.reach, text, self.hubs, file)
        with self._lock:
            for asked in (file, found.chosen):  # that it was looked at without being named
                self._found[text.strip(), asked] = (time.monotonic(), found)
            while len(self._found) > 32:
                self._found.popitem(last=False)
        return found

    def known(self, what: str) -> Found | None:
        """What was resolved lately and is called so."""
        with self._lock:
            return next((found for _, found in self._found.values() if found.what == what), None)

    def preview(self, found: Found) -> bytes | None:
        """Its picture as a small PNG."""
        if not found.preview:
            return None
        try:
            return sidecars.picture(self.reach, found.preview, 256)
        except DownloadError as error:
            log.info("no preview of %s: %s", printable(found.title), error)
            return None

    def kind_of(self, found: Found, choice: Choice, kind: str | None = None) -> str:
        return kind or choice.kind or found.kind

    def target_of(self, found: Found, choice: Choice, kind: str | None = None, name: str | None = None) -> Path | None:
        """Where it would be put; None where nobody said what it is. Raises DownloadError for a name that cannot be."""
        folder = self.folders().get(self.kind_of(found, choice, kind))
        return folder / _name(choice, name) if folder else None

    # --- starting ------------------------------------------------------------------------------------------------

    def start(self, text: str, file: str | None = None, kind: str | None = None, name: str | None = None) -> Download:
        """Raises DownloadError where nothing can be fetched, or would overwrite something else."""
        found = self.resolve(text, file)
        choice = found.choice(file)
        if choice.refused:
            raise DownloadError(f"{choice.name} is not fetched: {choice.refused}")
        folders = self.folders()
        kind = self.kind_of(found, choice, kind)
        if kind not in folders:
            said = f"there is no kind {kind[:40]!r}" if kind else "nothing tells what kind of model it is"
            raise DownloadError(f"{said}; say one of: {', '.join(folders)}")
        target = folders[kind] / _name(choice, name)
        order = Order(
            id=os.urandom(8).hex(),
            what=found.what,
            source=found.source,
            title=found.title,
            kind=kind,
            target=target,
            files=choice.files,
            is_folder=bool(choice.folder),
            keyless=any(has_secrets(remote.url) for remote in choice.files),
            facts=sidecars.facts_of(found),
        )
        with self._lock:
            self._look_for_left_overs()
            if task := next((t for t in self._tasks.values() if t.holds(target)), None):
                return self._again(task, order)
        if there := self._there_already(order):
            task = Task(order, "done", note=f"it is there already: {_place(there, folders.values())}")
            task.received = order.size or 0
            with self._lock:
                self._keep(task)
            return self._told(task)
        check_space(target.parent, (order.size or 0))
        parts.save(order)
        with self._lock:
            task = Task(order, "queued")
            self._keep(task)
        log.info("a download was asked for: %s from %s", printable(order.target.name), order.source)
        self._pump()
        return self._told(task)

    def _again(self, task: "Task", order: Order) -> Download:
        """One of this name is in the list and not over."""
        if not task.order.is_of_the_same(order):
            raise DownloadError(
                f"an unfinished download of another file is called {order.target.name}; cancel it, or give another name"
            )
        if task.state in ("paused", "failed"):
            task.order = order.going_on_from(task.order)
            return self.resume(task.order.id)
        return task.snapshot()

    def _there_already(self, order: Order) -> Path | None:
        """The same model, wherever it is. Raises DownloadError where something else has its name."""
        first = order.files[0]
        if not order.is_folder and first.sha256:
            if known := self._twin(first.sha256):
                return known
            if first.size is not None and (twin := _same_beside(order.target.parent, first.size, first.sha256)):
                return twin
        if not os.path.lexists(order.target):
            return None
        name, folder = order.target.name, order.target.parent.name
        raise DownloadError(f"something else in {folder} is called {name}; give this one another name")

    # --- the list ------------------------------------------------------------------------------------------------

    def list(self) -> tuple[Download, ...]:
        """The newest first."""
        with self._lock:
            self._look_for_left_overs()
            return tuple(task.snapshot() for task in reversed(self._tasks.values()))

    def get(self, id: str) -> Download:
        return self._task(id).snapshot()

    def pause(self, id: str) -> Download:
        task = self._task(id)
        self._end(task, "paused")
        return self._told(task)

    def resume(self, id: str) -> Download:
        task = self._task(id)
        with self._lock:
            if task.state not in ("paused", "failed"):
                return task.snapshot()
            if task.order.keyless and any(not has_secrets(file.url) for file in task.order.files):
                raise DownloadError(
                    "its link held a key, which is not kept over a restart; paste the link again: it goes on from there"
                )
            task.state, task.error, task.note, task.asks_for = "queued", None, "", ""
        self._pump()
        return self._told(task)

    def cancel(self, id: str, keep: bool = False) -> Download:
        """`keep`: what came stays on the disk, and is offered again after a restart."""
        task = self._task(id)
        task.drop_parts = not keep
        self._end(task, "cancelled")
        return self._told(task)

    def close(self) -> None:
        """Ends all of them; what came stays."""
        with self._lock:
            self._closed = True
            tasks = [task for task in self._tasks.values() if task.state in ("queued", "running")]
        for task in tasks:
            task.ask_to_stop("paused")
        for task in tasks:
            if task.thread:
                task.thread.join(STOPS_WITHIN_S)
        self.reach.close()

    def _end(self, task: "Task", state: State) -> None:
        with self._lock:
            if task.state in ("done", "cancelled"):
                return
            if task.state != "running":
                task.ended_as(state)
                return
            thread = task.thread
        task.ask_to_stop(state)
        if thread and thread is not threading.current_thread():
            thread.join(STOPS_WITHIN_S)

    def _task(self, id: str) -> "Task":
        with self._lock:
            self._look_for_left_overs()
            if id not in self._tasks:
                raise UnknownDownload(id)
            return self._tasks[id]

    def _keep(self, task: "Task") -> None:
        self._tasks[task.order.id] = task
        over = [id for id, one in self._tasks.items() if one.state in ("done", "cancelled", "failed")]
        for id in over[: max(0, len(self._tasks) - MOST_KEPT)]:
            del self._tasks[id]

    def _look_for_left_overs(self) -> None:
        if self._looked:
            return
        self._looked = True
        for order in parts.left_over(self.folders().items()):
            task = Task(order, "paused", note="left over from before the restart")
            task.received = order.received()
            self._tasks[order.id] = task

    def _told(self, task: "Task") -> Download:
        now = task.snapshot()
        self._publish(now)
        return now

    # --- the work ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        with self._lock:
            running = sum(task.state == "running" for task in self._tasks.values())
            for task in [] if self._closed else list(self._tasks.values()):
                if task.state == "queued" and running < AT_ONCE:
                    running += 1
                    task.state = "running"
                    task.stop_as = None
                    task.thread = threading.Thread(
                        target=self._run, args=(task,), name=f"download {task.order.id}", daemon=True
                    )
                    task.thread.start()

    def _run(self, task: "Task") -> None:
        try:
            self._bring(task)
            task.state, task.seconds_left = "done", None
            log.info("downloaded %s", printable(task.order.target.name))
        except Stopped:
            task.ended_as(task.stop_as or "paused")
        except DownloadError as error:
            task.fail(error.sentence, error.asks_for)
            self._spoil(task, isinstance(error, WrongContent))
            log.warning("the download of %s failed: %s", printable(task.order.target.name), error)
        except Exception:  # the border of a thread: whatever it is, the list must not say "running" for ever
            log.exception("the download of %s broke", printable(task.order.target.name))
            task.fail("an internal error; the log has the details")
        task.speed = 0.0
        if task.state == "done":
            self._finished(task.order.kind)
        self._told(task)
        self._pump()

    def _spoil(self, task: "Task", spoiled: bool) -> None:
        """So that the next try does not go on with what is wrong."""
        if spoiled:
            task.order = replace(task.order, spoiled=True)
            try:
                parts.save(task.order)
            except DownloadError as error:
                log.warning("%s", error)

    def _bring(self, task: "Task") -> None:
        if task.order.spoiled:
            parts.drop(task.order)
            task.order = task.order.anew()
            parts.save(task.order)
        before = 0
        for file in task.order.files:
            if file.name not in task.order.done:
                self._bring_one(task, file, before)
            before += task.order.part_of(file).stat().st_size if task.order.part_of(file).exists() else file.size or 0
        task.say("putting it in place")
        parts.put_in_place(task.order)
        problems = sidecars.write_beside(task.order.target, task.order.facts or {}, self.reach)
        task.say("; ".join(problems))

    def _bring_one(self, task: "Task", file: RemoteFile, before: int) -> None:
        def moved(have: int, total: int | None) -> None:
            if task.moved(before + have):
                self._told(task)

        def hashed(have: int, total: int | None) -> None:
            if task.checked(before + have):
                self._told(task)

        def note(sentence: str) -> None:
            task.say(sentence)
            self._told(task)

        def learned(news: RemoteFile) -> None:
            task.order = task.order.knowing(news)
            parts.save(task.order)

        watch = Watch(moved, note, learned, hashed)
        task.watch(watch)
        part = task.order.part_of(file)
        fetch(self.reach, file, part, watch)
        task.say("checking it")
        self._told(task)
        self._check(file, part)
        watch.check()
        if task.order.is_folder:
            task.order = replace(task.order, done=(*task.order.done, file.name))
            parts.save(task.order)

    def _check(self, file: RemoteFile, part: Path) -> None:
        """What it holds, before it gets a model's name. Raises WrongContent."""
        suffix = suffix_of(file.name)
        try:
            if suffix == ".safetensors":
                read_header(part)
            elif suffix in PICKLED:
                self._check_pickle(part)
        except ModelFileError as error:
            raise WrongContent(f"{file.name}: {error.reason}") from None
        except ValueError as error:
            part.unlink(missing_ok=True)
            raise WrongContent(f"{file.name} was thrown away: {error}") from None


def _name(choice: Choice, wish: str | None) -> str:
    """The name of the file or folder; the user's wish keeps the file's ending."""
    own = choice.folder or choice.files[0].name
    if choice.folder:
        if any(safe_relative(file.name) != file.name for file in choice.files):
            raise DownloadError("the repository holds names that lead out of its folder; it is not fetched")
        name = safe_name(wish) if wish else own
    else:
        name = safe_name(wish) if wish else own
        if wish and suffix_of(name) != suffix_of(own) and is_model(own):
            name = safe_name(f"{name}{suffix_of(own)}")
        if not is_model(name):
            raise DownloadError(
                f"{own[:80]!r} has no ending of a model; give it a name that ends in .safetensors, or as it is"
            )
    if not name:
        raise DownloadError(f"the name {(wish or own)[:80]!r} cannot be a file's; give another one")
    return name


def _same_beside(folder: Path, size: int, sha256: str) -> Path | None:
    """A file of this content in the folder: only those of the same size are read."""
    for place in places(folder, (".safetensors", ".gguf", *PICKLED)):
        for entry in place.files:
            try:
                if entry.stat().st_size == size and sha256_of(Path(entry.path)) == sha256:
                    return Path(entry.path)
            except (OSError, ModelFileError) as error:
                log.debug("%s was not compared: %s", printable(entry.name), error)
    return None


def _place(path: Path, folders: Any) -> str:
    for folder in folders:
        if path.is_relative_to(folder):
            return f"{folder.name}/{path.relative_to(folder).as_posix()}"
    return path.name
