"""Training that can be killed: the state of a run in one file, and a learning rate that follows the time spent.

Every random choice of step n comes from generators seeded with (seed, n), so the step number is all of the RNG state.
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Plan:
    """How long, and how fast. Extending `minutes` on resume lifts the rate again until the new tail begins."""

    minutes: float  # of training in all, over all sessions
    rate: float  # learning rate between warm-up and tail
    warm_up: int = 100  # steps of linear rise
    tail: float = 0.35  # last part of the time, 0-1, in which the rate falls along a cosine
    floor: float = 0.02  # of the rate, at the end

    def done(self, elapsed_s: float) -> bool:
        return elapsed_s >= self.minutes * 60

    def falls(self, elapsed_s: float) -> bool:
        """Whether the last part has begun."""
        return elapsed_s > (1 - self.tail) * self.minutes * 60

    def factor(self, step: int, elapsed_s: float) -> float:
        """Of the learning rate, 0-1."""
        progress = min(1.0, elapsed_s / (self.minutes * 60))
        into_tail = max(0.0, (progress - 1 + self.tail) / self.tail)
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * into_tail))
        return min(1.0, (step + 1) / self.warm_up) * fall


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """For one step of a run; the same after a resume as without one."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def save_state(state: dict[str, Any], file: Path) -> None:
    """All or nothing: a kill in mid-write leaves the state before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    with open(unfinished, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)


def load_state(file: Path) -> dict[str, Any] | None:
    """The state that `save_state` left, on the CPU; None when the run has not begun."""
    if not file.exists():
        return None
    return torch.load(file, map_location="cpu", weights_only=True)


def keep(folder: Path, parts: Mapping[str, Stateful], **counters: float) -> None:
    """The run as it is now: its parts, and how far it is."""
    save_state({**counters, **{name: part.state_dict() for name, part in parts.items()}}, folder / "state.pt")


def resumed(folder: Path, parts: Mapping[str, Stateful], **counters: float) -> dict[str, Any]:
    """The counters that `keep` left, and every part as it was; as they are given when the run has not begun."""
    state = load_state(folder / "state.pt")
    if state is None:
        return counters
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return {name: state[name] for name in counters}
