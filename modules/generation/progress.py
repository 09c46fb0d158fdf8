"""What a run tells while it works, and the three ways in which it ends early. Knows no torch.

`watch(Progress)` is called by the engine at every step. It raises one of the exceptions here only while the phase is
`loading`, `encoding` or `sampling`; decoding and saving always finish."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Phase = Literal["loading", "encoding", "sampling", "decoding", "saving"]


@dataclass(frozen=True)
class Progress:
    phase: Phase
    batch: int = 0  # 0-based, among the batches of this run
    batches: int = 1
    step: int = 0  # steps done in this batch
    steps: int = 0
    preview: Callable[[], Image.Image] | None = None  # costs nothing until called; valid only inside watch()
    loaded: float | None = None  # 0–1 of a checkpoint's bytes, in the phase "loading"


class Interrupted(Exception):
    """The user wants no more steps: decode what there is of this batch, yield it, and end."""


class Skipped(Exception):
    """The user wants the next batch: decode what there is of this one, yield it, and go on."""


class Stopped(Exception):
    """The program ends now: drop the batch. The engine lets this pass; the job is run again at the next start."""


Watch = Callable[[Progress], None]
