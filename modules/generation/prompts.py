"""The conditionings of one batch, call by call of the model, as editing and alternation change them."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from modules.families.family import Conditioning, Model, TextOptions
from modules.prompt.composition import compose
from modules.prompt.schedule import Timeline, Until, index_at, schedule

KEPT_TEXTS = 512  # whose conditionings an encoder remembers
KEPT_BYTES = 32 * 2**20  # of conditionings for later runs: 140 chunks of SD 1.x, 50 of SDXL

# What a prompt and a negative prompt of different lengths become: nothing, and they go through the network one after
# the other; the shorter is filled up with empty chunks; or, as in old versions of A1111, the negative prompt is cut, or
# repeats its last vector.
Padding = Literal["none", "chunks", "v0"]


class Conditionings:
    """What was encoded last, for the runs that follow. Goes with the model that made it. For the worker's thread."""

    def __init__(self, room: int = KEPT_BYTES):
        self.room = room  # bytes, for each model
        # The longest unused first.
        self._kept: WeakKeyDictionary[Model, OrderedDict[Hashable, Conditioning]] = WeakKeyDictionary()

    def get(self, model: Model, key: Hashable) -> Conditioning | None:
        kept = self._kept.get(model)
        if kept is None or key not in kept:
            return None
        kept.move_to_end(key)
        return kept[key]

    def put(self, model: Model, key: Hashable, conditioning: Conditioning) -> None:
        kept = self._kept.setdefault(model, OrderedDict())
        kept[key] = conditioning
        while self.bytes_of(model) > self.room:
            kept.popitem(last=False)

    def bytes_of(self, model: Model) -> int:
        return sum(made.nbytes for made in self._kept.get(model, {}).values())

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()


class Encoder:
    """Encodes what the prompts of one run say, once."""

    def __init__(self, model: Model, options: TextOptions, kept: Conditionings | None = None, changes: Hashable = None):
        """`kept`: of earlier runs, for later ones too; `changes`: what networks have changed at the text encoder."""
        self._model, self._options = model, options
        self._kept, self._changes = kept, changes
        self._known: dict[tuple[tuple[str, ...], bool], Conditioning] = {}  # the longest unused first

    def group(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        """One row a text. The texts are all that one prompt says in turn: they belong together, for they are of one
        length, and share the mean that the emphasis "Original" keeps."""
        key = (tuple(texts), negative)
        found = self._known.pop(key, None)
        if found is None:
            found = self._encoded(texts, negative)
            while self._known and len(texts) + sum(map(len, self._known.values())) > KEPT_TEXTS:
                del self._known[next(iter(self._known))]
        self._known[key] = found
        return found

    def _encoded(self, texts: Sequence[str], negative: bool) -> Conditioning:
        if self._kept is None:
            return self._model.encode(texts, self._options, negative)
        key = (self._changes, self._model.text_key(texts, self._options, negative))
        found = self._kept.get(self._model, key)
        if found is None:
            found = self._model.encode(texts, self._options, negative)
            self._kept.put(self._model, key, found)
        return found

    def empty_chunk(self) -> Tensor:
        """(1, 77, D): the prompt that says nothing."""
        return self.group([""]).cross


class Prompts:
    """What each image of a batch is asked to show, and what not."""

    def __init__(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        encoder: Encoder,
        timeline: Timeline,
        call: int = 0,
        padding: Padding = "none",
    ):
        """One prompt and one negative prompt an image; `call`: of the model, from which it goes on."""
        parts = [(i, text, weight) for i, prompt in enumerate(prompts) for text, weight in compose(prompt)]
        self.owners = [i for i, _, _ in parts]  # the image of each part
        self.weights = [weight for _, _, weight in parts]
        self.padded = False  # whether `padding` has changed anything yet
        self._parts = [schedule(text, timeline) for _, text, _ in parts]
        self._negatives = [schedule(negative, timeline) for negative in negatives]
        self._present: Encoder | None = encoder
        self._last: tuple[list[int], tuple[Conditioning, Conditioning]] | None = None  # rows, and what they gave
        self._calls, self.padding = call, padding

    @property
    def is_plain(self) -> bool:
        """Whether every image has one part of weight 1."""
        return self.owners == list(range(len(self._negatives))) and set(self.weights) == {1.0}

    def encode_with(self, encoder: Encoder | None) -> None:
        """Another model's text encoder, from the next call on; None: the present one's model is about to go."""
        self._present, self._last = encoder, None

    @property
    def _encoder(self) -> Encoder:
        assert self._present is not None, "encode_with(None) came before"
        return self._present

    def encode(self) -> None:
        """All of it now, so that what the prompts use is known before the first step."""
        for negative, schedules in ((True, self._negatives), (False, self._parts)):
            for texts in schedules:
                self._encoder.group([until.text for until in texts], negative)

    def said(self) -> list[list[str]]:
        """What is encoded: negative prompts first; of each prompt, once, all texts of its schedule."""
        texts = (tuple(until.text for until in untils) for untils in [*self._negatives, *self._parts])
        return [list(group) for group in dict.fromkeys(texts)]

    def next(self) -> tuple[Conditioning, Conditioning]:
        """P of all parts, B of the negative prompts; the same two as long as no prompt changes."""
        # A1111 counts calls from 0 and the steps of a prompt from 1, so that every change comes one call late.
        call, self._calls = self._calls, self._calls + 1
        rows = [index_at(texts, call) for texts in (*self._parts, *self._negatives)]
        if self._last is None or self._last[0] != rows:
            self._last = rows, self._at(rows)
        return self._last[1]

    def _at(self, rows: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        parts = len(self._parts)
        cond = self._chosen(self._parts, rows[:parts], negative=False)
        uncond = self._chosen(self._negatives, rows[parts:], negative=True)
        if self.padding != "none" and cond.cross.shape[1] != uncond.cross.shape[1]:
            self.padded = True
            cond, uncond = padded(cond, uncond, self.padding, self._encoder.empty_chunk())
        return cond, uncond

    def _chosen(self, schedules: Sequence[Sequence[Until]], rows: Sequence[int], negative: bool) -> Conditioning:
        return together(
            [
                self._encoder.group([until.text for until in texts], negative)[row : row + 1]
                for texts, row in zip(schedules, rows, strict=True)
            ]
        )


def together(rows: Sequence[Conditioning]) -> Conditioning:
    """All in one batch; the shorter ones repeat their last vector."""
    longest = max(row.cross.shape[1] for row in rows)
    vectors = [row.vector for row in rows if row.vector is not None]
    cross = torch.cat([stretched(row.cross, longest) for row in rows])
    return Conditioning(cross, torch.cat(vectors) if vectors else None)


def stretched(cross: Tensor, length: int) -> Tensor:
    """(N, L, D) -> (N, length, D): the last vector repeated."""
    return torch.cat([cross, cross[:, -1:].expand(-1, length - cross.shape[1], -1)], 1)


def padded(cond: Conditioning, uncond: Conditioning, how: Padding, empty: Tensor) -> tuple[Conditioning, Conditioning]:
    """Both of one length. `empty`: (1, 77, D)."""
    length = cond.cross.shape[1]
    if how == "v0":
        return cond, Conditioning(stretched(uncond.cross[:, :length], length), uncond.vector)
    longest = max(length, uncond.cross.shape[1])
    return filled(cond, longest, empty), filled(uncond, longest, empty)


def filled(conditioning: Conditioning, length: int, empty: Tensor) -> Conditioning:
    """With as many empty chunks at its end as make it `length` long."""
    cross = conditioning.cross
    chunks = (length - cross.shape[1]) // empty.shape[1]
    return Conditioning(torch.cat([cross, *[empty.expand(len(cross), -1, -1)] * chunks], 1), conditioning.vector)
