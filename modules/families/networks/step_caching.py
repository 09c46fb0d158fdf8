"""Step caching (DeepCache, Ma et al. 2024): the UNet's inner levels change little from step to step, so most calls go
through the outermost level only and take the rest from an earlier call. Faster, and another picture."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modules.families.family import Conditioning, Model

MOST_KEPT = 4  # conditionings: prompt and negative prompt of a pass, and those of the pass before


@dataclass
class Kept:
    """What one conditioning's last whole call left."""

    conditioning: Conditioning  # kept alive, so that no other one gets its identity
    shape: tuple[int, ...]  # of the latents
    calls: int = 0  # since then, itself included
    inner: Tensor | None = None  # (B, C, H, W): what the levels below the outermost gave


@contextmanager
def step_caching(model: Model, every: int) -> Iterator[None]:
    """Of `every` calls of the model with the same conditioning one is whole, the first of them always. 1: all are."""
    with ExitStack() as undo:
        if every > 1:
            _wrap(model, every, undo)
        yield


def _wrap(model: Model, every: int, undo: ExitStack) -> None:
    unet = model.components["unet"]
    cache = _Cache(every)
    predict = model.predict

    def cached(x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None) -> Tensor:
        with cache.call(x, conditioning):
            return predict(x, timestep, conditioning, beside)

    model.predict = cached  # type: ignore[method-assign]
    undo.callback(delattr, model, "predict")
    for block in unet.down_blocks[1:]:
        _replace(block, _passed_over(cache, block), undo)
    if unet.mid_block is not None:
        _replace(unet.mid_block, _passed_through(cache, unet.mid_block.forward), undo)
    *inner, last = unet.up_blocks[:-1]
    for block in inner:
        _replace(block, _passed_through(cache, block.forward), undo)
    _replace(last, _remembered(cache, last.forward), undo)


class _Cache:
    def __init__(self, every: int):
        self._every = every
        self._kept: OrderedDict[int, Kept] = OrderedDict()  # by the conditioning's identity, the last used last
        self._now: Kept | None = None

    @contextmanager
    def call(self, x: Tensor, conditioning: Conditioning) -> Iterator[None]:
        kept = self._kept.pop(id(conditioning), None)
        if kept is None or kept.shape != tuple(x.shape) or kept.inner is None or kept.calls >= self._every:
            kept = Kept(conditioning, tuple(x.shape))
        self._kept[id(conditioning)] = kept
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        self._now = kept
        try:
            yield
            kept.calls += 1
        finally:
            self._now = None

    @property
    def inner(self) -> Tensor | None:
        """What is known already, of the call that is under way."""
        return self._now.inner if self._now else None

    def remember(self, inner: Tensor) -> None:
        if self._now:
            self._now.inner = inner


def _replace(block: Any, forward: Any, undo: ExitStack) -> None:
    before = block.__dict__.get("forward")
    block.forward = forward
    undo.callback(setattr, block, "forward", before) if before else undo.callback(delattr, block, "forward")


def _passed_over(cache: _Cache, block: Any) -> Any:
    """A level on the way down: gives what it was given, and as many times as the way up takes something from it."""
    forward = block.forward
    given_on = len(block.resnets) + (1 if block.downsamplers else 0)

    def passed(hidden_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        if cache.inner is None:
            result: tuple[Tensor, tuple[Tensor, ...]] = forward(hidden_states, *rest, **named)
            return result
        return hidden_states, (hidden_states,) * given_on

    return passed


def _passed_through(cache: _Cache, forward: Any) -> Any:
    def passed(hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        if cache.inner is None:
            whole: Tensor = forward(hidden_states, *rest, **named)
            return whole
        return hidden_states

    return passed


def _remembered(cache: _Cache, forward: Any) -> Any:
    """The last level before the outermost one."""

    def passed(hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        if cache.inner is None:
            whole: Tensor = forward(hidden_states, *rest, **named)
            cache.remember(whole)
            return whole
        return cache.inner

    return passed
