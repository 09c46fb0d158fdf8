"""A job: one request on its way to pictures, as the queue's database keeps it. Frozen; the store makes new ones."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from modules.generation.request import GenerationRequest

State = Literal["queued", "running", "done", "interrupted", "failed", "cancelled"]
FINISHED: frozenset[State] = frozenset({"done", "interrupted", "failed", "cancelled"})


@dataclass(frozen=True)
class ModelIdentity:
    """The checkpoint file as it was when the request was accepted: another file under its name is another model."""

    name: str
    size: int  # bytes
    mtime_ns: int
    sha256: str | None  # None: not hashed yet at that time

    @property
    def model_name(self) -> str:
        """Without folder and ending: what infotexts say."""
        return PurePosixPath(self.name).stem


@dataclass(frozen=True)
class JobImage:
    """One finished picture of a job."""

    index: int
    path: Path | None  # None: kept in memory only, because it could not be written
    kept: bool  # under outputs/ for good; otherwise it is for the answer, and goes away some day
    seed: int
    infotext: str
    width: int  # pixels
    height: int
    warning: str | None  # why it is not where the user expects it


@dataclass(frozen=True)
class Job:
    id: str
    sequence: int  # the queue's order
    state: State
    source: str  # "page" or "api"
    client: str  # the browser tab or program that asked
    request: GenerationRequest  # settled
    settings: dict[str, Any]  # the settings at that time, as far as they differ from the defaults
    model: ModelIdentity
    created: float  # seconds since 1970, for people only: the order is `sequence`
    started: float | None
    finished: float | None
    attempts: int  # how often it was begun since its last new picture
    stop: bool  # the user asked to interrupt it
    error: str | None
    images: tuple[JobImage, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in FINISHED
