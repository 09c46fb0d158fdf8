"""Keeps the models that were used last, as many as fit into main memory, so that switching between them costs nothing.
For the worker's thread only."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import torch

from modules.families.family import Family, Model, Report
from modules.families.formats import header_of, vae_header
from modules.families.loader import FAMILIES, part_of, read_model
from modules.families.unet_files import Completed, Sources, completed, is_unet_only, is_xl
from modules.families.weights import DTYPES
from modules.library.checkpoints import Checkpoint, fingerprint_of
from modules.library.gguf import QUANTISED
from modules.library.hashes import Fingerprint
from modules.library.header import Header, ModelFileError
from modules.runtime.device import Placement
from modules.runtime.memory import GIB, Memory

log = logging.getLogger(__name__)

MAIN = torch.device("cpu")  # main memory, as a place for weights
TOLD_A_SECOND = 10


@dataclass(frozen=True)
class Keeping:
    """What the user wants kept."""

    most: int | None = None  # models at the same time, the one at work included; None: as many as fit
    in_main_memory: bool = True  # those that are not at work leave the device


@dataclass(frozen=True)
class Wish:
    """How the user wants checkpoints to be loaded."""

    fp8: Literal["Disable", "Enable for SDXL", "Enable"] = "Disable"  # the UNet's weights kept in 8 bits
    fp8_full: bool = False  # and in all their bits in main memory, for LoRAs
    text_encoders: tuple[Path, ...] = ()  # for UNet-only files
    vae: Path | None = None  # for UNet-only files, where no checkpoint lends one


Key = tuple[Path, Fingerprint, Path | None, int, Placement, Hashable]


@dataclass
class Kept:
    checkpoint: Checkpoint
    model: Model

    @property
    def at(self) -> torch.device:
        """Where it is, as a whole or mostly: it moves while it works (residence.py)."""
        weight: torch.Tensor = next(self.model.components["unet"].parameters())
        return weight.device

    @property
    def size(self) -> int:
        return size_of(self.model)


class ModelHolder:
    """`get` gives a checkpoint's model. The one that it gave last is at work, and stays; the others go when their room
    is wanted, the longest unused first."""

    def __init__(
        self,
        placement: Placement,
        report: Callable[[str, float], None] = lambda text, fraction: None,  # what is done, for people; 0–1
        keeping: Callable[[], Keeping] = Keeping,
        host: Memory | None = None,
        device: Memory | None = None,
        families: tuple[Family, ...] = FAMILIES,
        place: Callable[[int, str], torch.device] | None = None,
        lenders: Callable[[], Iterable[Path]] = tuple,
    ):
        """`place`: where a model of so many bytes, of the family of that name, is loaded to; None: to the device.
        `lenders`: checkpoints whose text encoder and VAE go with files that hold only a UNet, in order."""
        self.placement, self._lenders = placement, lenders
        self._headers: dict[tuple[Path, Fingerprint], Header] = {}  # the one that was read last
        self._kinds: dict[tuple[Path, Fingerprint], tuple[bool, bool]] = {}  # is of SDXL's line; has only a UNet
        self._report, self._keeping, self._families = report, keeping, families
        self.host = host or Memory(MAIN)
        self.device = device or (Memory(placement.device) if placement.device != MAIN else self.host)
        self._place = place or (lambda size, family: placement.device)
        self._kept: OrderedDict[Key, Kept] = OrderedDict()  # the longest unused first
        self._at_work: Key | None = None

    def get(
        self,
        checkpoint: Checkpoint,
        watch: Callable[[float], None] = lambda fraction: None,
        wish: Wish = Wish(),  # noqa: B008 - frozen
    ) -> Model:
        """The checkpoint's model, at work from now on. While it is being read, `watch` is told what part (0–1) of its
        bytes is there; what it raises ends the load. Raises ModelFileError with a sentence for people."""
        started = time.monotonic()
        key = self._key(checkpoint, wish)
        if key == self._at_work:
            return self._kept[key].model
        self._at_work = None  # nobody works on the one before; it may go
        if kept := self._kept.get(key):
            self._kept.move_to_end(key)
            self._keep_to_limits(key)
            self._move(kept, self._place(kept.size, kept.model.family) if kept.at == MAIN else kept.at)
            log.info("switched to %s, which was in memory, in %.3f s", name_of(checkpoint), time.monotonic() - started)
        else:
            kept = self._kept[key] = self._load(checkpoint, watch, key, wish)
        self._at_work = key
        return kept.model

    def has(self, checkpoint: Checkpoint, wish: Wish = Wish()) -> bool:  # noqa: B008 - frozen
        """Whether `get` would have no file to read."""
        try:
            return self._key(checkpoint, wish) in self._kept
        except ModelFileError:
            return False

    def kept(self) -> tuple[Checkpoint, ...]:
        """What is in memory, the longest unused first."""
        return tuple(kept.checkpoint for kept in self._kept.values())

    def make_room(self, wanted: int, memory: Memory | None = None) -> int:
        """Lets models go that are not at work, until so many bytes are free: of main memory, or of the device's. The
        bytes that are free then; they may be fewer."""
        memory = memory or self.host
        while (free := memory.free()) < wanted and self._drop_one(memory.device):
            pass
        return free

    def shrink_to(self, most: int) -> None:
        """Lets models go that are not at work, until those that are left have so many bytes together."""
        while sum(kept.size for kept in self._kept.values()) > most and self._drop_one():
            pass

    def unload(self) -> None:
        """Give all of the memory back; the next `get` loads again."""
        self._at_work = None
        self._kept.clear()
        self._tidy()

    # --- loading -------------------------------------------------------------------------------------------------

    def _load(self, checkpoint: Checkpoint, watch: Callable[[float], None], key: Key, wish: Wish) -> Kept:
        started = time.monotonic()
        self._report(f"loading {checkpoint.model_name}, {checkpoint.size / 1e6:.0f} MB", 0.0)
        whole = self._completed(checkpoint, key, wish)
        header = whole.header
        placement = self._fitted(header, key[4])
        placement = replace(placement, home=self._way_made(size_in(header, placement), header))
        told = Told(checkpoint, header, self._report, watch)
        report = Report(told.part, told.read)
        try:
            model = read_model(checkpoint.path, placement, checkpoint.config, report, self._families, header)
        except BaseException:
            self._tidy()  # what was half there
            raise
        model.taken = whole.taken
        took = time.monotonic() - started
        log.info("loaded %s (%s) on %s in %.2f s", name_of(checkpoint), model.family, placement, took)
        for part, names in whole.taken.items():
            log.info("%s holds only a UNet; %s %s", name_of(checkpoint), part.lower(), names)
        return Kept(checkpoint, model)

    def _completed(self, checkpoint: Checkpoint, key: Key, wish: Wish) -> Completed:
        header = self._headers.get(key[:2]) or header_of(checkpoint.path)
        self._headers.clear()
        sources = Sources(self._lenders, wish.text_encoders, wish.vae)
        return completed(
            checkpoint.path, header, sources, lambda path: vae_header(path) if path == wish.vae else header_of(path)
        )

    def _fitted(self, header: Header, placement: Placement) -> Placement:
        """Where main memory is too small for a UNet in fp32, that of a file in halves stays in them. It still computes
        in fp32, the same numbers for a little more time."""
        if placement.fp8 or placement.device != MAIN or placement.unet_dtype is not torch.float32:
            return placement
        dtypes = {info.dtype for name, info in header.tensors.items() if part_of(name) == "unet"}
        if len(dtypes) != 1 or not dtypes <= {"F16", "BF16"}:
            return placement
        if size_in(header, placement) + self._margin() <= self.host.total():
            return placement
        return replace(placement, unet_stored=DTYPES[dtypes.pop()])

    def _key(self, checkpoint: Checkpoint, wish: Wish) -> Key:
        """Raises ModelFileError for a file that is not the same any more. What was loaded of it is let go."""
        path, config = checkpoint.path, checkpoint.config
        try:
            now = fingerprint_of(path)
            config_changed = config.stat().st_mtime_ns if config else 0
        except OSError as error:
            self._forget(path)
            raise ModelFileError(path, f"is not there any more ({error.strerror or error})") from None
        if now != checkpoint.fingerprint:
            self._forget(path)
            raise ModelFileError(path, "changed since it was chosen; is it still being downloaded? Choose it again")
        is_xl, is_part = self._kind(path, now)
        fp8 = not self.placement.upcast and (wish.fp8 == "Enable" or (wish.fp8 == "Enable for SDXL" and is_xl))
        placement = replace(self.placement, fp8=fp8, fp8_full=fp8 and wish.fp8_full)
        key = (path, now, config, config_changed, placement, (wish.text_encoders, wish.vae) if is_part else None)
        if any(kept[0] == path and kept != key for kept in self._kept):
            self._forget(path)
        return key

    def _kind(self, path: Path, now: Fingerprint) -> tuple[bool, bool]:
        """(of SDXL's line, only a UNet). Reads the header of a file that was not seen yet."""
        if (path, now) not in self._kinds:
            header = header_of(path)
            self._headers = {(path, now): header}
            self._kinds[path, now] = is_xl(header), is_unet_only(header)
        return self._kinds[path, now]

    def _forget(self, path: Path) -> None:
        for key in [key for key in self._kept if key[0] == path]:
            self._at_work = None if self._at_work == key else self._at_work
            self._drop(key, "it is to be loaded anew")

    # --- keeping -------------------------------------------------------------------------------------------------

    def _way_made(self, coming: int, header: Header) -> torch.device:
        """Where a model of `coming` bytes is to be loaded to; there is room for it, if others could make it."""
        self._keep_to_limits()
        if self.device is not self.host:
            self.make_room(coming + GIB, self.device)
        home = self._place(coming, family_of(header, self._families))
        if home == MAIN:
            self.make_room(coming + self._margin())
        return home

    def _keep_to_limits(self, chosen: Key | None = None) -> None:
        """Before another model is loaded, or `chosen` goes to work."""
        keeping = self._keeping()
        others = [key for key in self._kept if key != chosen]
        most = (keeping.most or len(others) + 1) - 1
        while len(others) > most:
            self._drop(others.pop(0), "no more are to be kept")
        if self.device is not self.host and keeping.in_main_memory:
            for key in others[::-1]:
                self._rest(key)

    def _rest(self, key: Key) -> None:
        """From the device into main memory, if there is room."""
        kept = self._kept.get(key)  # an earlier one may have taken its room
        if kept is None or kept.at == MAIN:
            return
        wanted = kept.size + self._margin()
        del kept
        if self.make_room(wanted) < wanted:
            self._drop(key, "main memory has no room for it")
        else:
            self._move(self._kept[key], MAIN)

    def _margin(self) -> int:
        """Bytes of main memory that stay free: for the pictures, and for everybody else on this machine."""
        return max(2 * GIB, self.host.total() // 5)

    def _drop_one(self, where: torch.device | None = None) -> bool:
        for key, kept in self._kept.items():
            if key != self._at_work and (where is None or kept.at.type == where.type):
                break
        else:
            return False
        del kept  # nothing here may hold what is dropped
        self._drop(key, "its room is wanted")
        return True

    def _drop(self, key: Key, why: str) -> None:
        kept = self._kept.pop(key)
        log.info("%s (%.2f GB) leaves the memory: %s", name_of(kept.checkpoint), kept.size / 1e9, why)
        del kept
        self._tidy()

    def _move(self, kept: Kept, device: torch.device) -> None:
        if kept.at != device:
            for network in kept.model.components.values():
                network.to(device)
            self._tidy()

    def _tidy(self) -> None:
        self.host.release()
        if self.device is not self.host:
            self.device.release()


class Told:
    """Makes of what a load reads what people and `watch` are told."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        header: Header,
        report: Callable[[str, float], None],
        watch: Callable[[float], None],
    ):
        self._text = f"loading {checkpoint.model_name}, {checkpoint.size / 1e6:.0f} MB"
        self._report, self._watch = report, watch
        self._total = max(1, sum(info.end - info.start for name, info in header.tensors.items() if is_used(name)))
        self._done, self._part, self._last = 0, "", (0.0, 0)

    def part(self, name: str) -> None:
        self._part = name
        self._tell(time.monotonic())

    def read(self, count: int) -> None:
        self._done += count
        self._watch(self._fraction)
        now, (when, percent) = time.monotonic(), self._last
        if int(100 * self._fraction) > percent and now - when >= 1 / TOLD_A_SECOND:
            self._tell(now)

    @property
    def _fraction(self) -> float:
        return min(1.0, self._done / self._total)

    def _tell(self, now: float) -> None:
        self._last = now, int(100 * self._fraction)
        self._report(f"{self._text}: {self._part}, {self._last[1]} %", self._fraction)


def family_of(header: Header, families: tuple[Family, ...]) -> str:
    return next((family.name for family in families if family.matches(header)), "")


def is_used(name: str) -> bool:
    """Whether a load reads this tensor: not the averaged weights that training keeps beside those in use."""
    return not name.startswith("model_ema.")


def size_in(header: Header, placement: Placement) -> int:
    """Bytes of the model once it is loaded."""

    def width(name: str, shape: tuple[int, ...]) -> int:
        part = part_of(name)
        if part == "unet" and len(shape) > 1 and (placement.fp8 or placement.unet_stored):
            return (placement.unet_stored or torch.float8_e4m3fn).itemsize
        return placement.dtype_of(part).itemsize

    known = DTYPES.keys() | QUANTISED
    used = ((name, info.shape) for name, info in header.tensors.items() if is_used(name) and info.dtype in known)
    return sum(prod(shape) * width(name, shape) for name, shape in used)


def size_of(model: Model) -> int:
    """Bytes of a loaded model's weights."""
    networks = model.components.values()
    return sum(tensor.nbytes for network in networks for tensor in [*network.parameters(), *network.buffers()])


def name_of(checkpoint: Checkpoint) -> str:
    return checkpoint.model_name
