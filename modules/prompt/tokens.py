"""From text to the chunks of 77 tokens that CLIP reads: byte-pair encoding, and where a long prompt is cut. The
encoding is that of transformers' slow CLIPTokenizer with ftfy, which A1111 used; knows no torch, and no
transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ftfy
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Encoder
from tokenizers.models import BPE

from modules.prompt.attention import BREAK, Piece

ROOM = 75  # tokens of a chunk between its start and end token

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Embedding(NamedTuple):
    """A textual inversion inside a chunk: its vectors begin `offset` tokens after the start token."""

    offset: int
    name: str
    first: int = 0  # which of its vectors is the first here: one with more than a chunk takes goes on in the next


class _Spelling(NamedTuple):
    """How the name of a textual inversion looks in tokens."""

    tokens: list[int]
    name: str
    vectors: int


@dataclass(frozen=True)
class Chunk:
    """What the text encoder reads at once: start token, 75 tokens, end token."""

    tokens: tuple[int, ...]  # (77,)
    weights: tuple[float, ...]  # (77,)
    embeddings: tuple[Embedding, ...] = ()  # the tokens at their places are 0


class Tokenizer:
    """CLIP's byte-pair encoding of one vocabulary."""

    def __init__(self, encoder: Encoder, pad: int | None = None) -> None:
        self._encoder = encoder
        self.bos = self._id("<|startoftext|>")
        self.eos = self._id("<|endoftext|>")
        self.pad = self.eos if pad is None else pad  # SD 1.x pads with the end token, SD 2.x and OpenCLIP with 0
        self.comma = self._id(",</w>")

    @classmethod
    def from_folder(cls, folder: Path, pad: int | None = None) -> "Tokenizer":
        """The folder holds vocab.json and merges.txt, as CLIP's tokenizers are distributed."""
        model = BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token="<|endoftext|>",
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
        encoder = Encoder(model)
        encoder.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        encoder.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
        return cls(encoder, pad)

    def encode(self, text: str) -> list[int]:
        """Token ids, without a start and end token."""
        ids: list[int] = self._encoder.encode(clean(text), add_special_tokens=False).ids
        return ids

    def decode(self, token: int) -> str | None:
        """The vocabulary's entry of one id, such as `cat</w>`."""
        return self._encoder.id_to_token(token)

    def _id(self, entry: str) -> int:
        token = self._encoder.token_to_id(entry)
        if token is None:
            raise ValueError(f"the tokenizer's vocabulary has no {entry!r}; it is not one of CLIP")
        return token


class Embeddings:
    """The textual inversions that a prompt may name. They are found by the tokens of their names, so case does not
    matter; of two that begin alike the longer name wins."""

    def __init__(self, vectors: Mapping[str, int], tokenizer: Tokenizer) -> None:
        """`vectors`: how many each has, by name."""
        self._by_first: dict[int, list[_Spelling]] = {}
        for name, count in vectors.items():
            if tokens := tokenizer.encode(name):
                self._by_first.setdefault(tokens[0], []).append(_Spelling(tokens, name, count))
        for spellings in self._by_first.values():
            spellings.sort(key=lambda spelling: len(spelling.tokens), reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> _Spelling | None:
        for spelling in self._by_first.get(tokens[position], ()):
            if tokens[position : position + len(spelling.tokens)] == spelling.tokens:
                return spelling
        return None


def chunk(
    pieces: Sequence[Piece], tokenizer: Tokenizer, backtrack: int = 20, embeddings: Embeddings | None = None
) -> list[Chunk]:
    """At least one chunk. Where a chunk is full and has a comma among its last `backtrack` tokens, what follows that
    comma goes to the next chunk."""
    chunks = _fill(pieces, tokenizer, backtrack, embeddings)
    return chunks.finish()


def count(
    pieces: Sequence[Piece], tokenizer: Tokenizer, backtrack: int = 20, embeddings: Embeddings | None = None
) -> tuple[int, int]:
    """(tokens, room) as the token counter shows them, such as (80, 150): every chunk but the last counts whole."""
    chunks = _fill(pieces, tokenizer, backtrack, embeddings)
    tokens = ROOM * len(chunks.done) + len(chunks.tokens)
    return tokens, ROOM * max(1, -(-tokens // ROOM))


def _fill(pieces: Sequence[Piece], tokenizer: Tokenizer, backtrack: int, embeddings: Embeddings | None) -> "_Chunks":
    chunks = _Chunks(tokenizer, backtrack)
    for piece in pieces:
        if piece == BREAK:
            chunks.cut()
            continue
        text, weight = piece
        tokens = tokenizer.encode(text)
        position = 0
        while position < len(tokens):
            chunks.make_room(tokens[position])
            if embeddings and (found := embeddings.at(tokens, position)):
                chunks.add_embedding(found, weight)
                position += len(found.tokens)
            else:
                chunks.add(tokens[position], weight)
                position += 1
    return chunks


class _Chunks:
    def __init__(self, tokenizer: Tokenizer, backtrack: int) -> None:
        self.tokenizer, self.backtrack = tokenizer, backtrack
        self.done: list[Chunk] = []
        self.tokens: list[int] = []  # of the chunk in the making, at most ROOM
        self.weights: list[float] = []
        self.embeddings: list[Embedding] = []
        self.comma: int | None = None  # where its last comma is

    def make_room(self, token: int) -> None:
        """Before `token` is added."""
        size = len(self.tokens)
        if token == self.tokenizer.comma:
            self.comma = size
        elif size == ROOM and self.comma is not None and size - self.comma <= self.backtrack:
            self.cut(self.comma + 1)
        if len(self.tokens) == ROOM:
            self.cut()

    def add(self, token: int, weight: float) -> None:
        self.tokens.append(token)
        self.weights.append(weight)

    def add_embedding(self, found: _Spelling, weight: float) -> None:
        for first in range(0, found.vectors, ROOM):  # more than once only where A1111 fails
            vectors = min(found.vectors - first, ROOM)
            if len(self.tokens) + vectors > ROOM:
                self.cut()
            self.embeddings.append(Embedding(len(self.tokens), found.name, first))
            self.tokens += [0] * vectors
            self.weights += [weight] * vectors

    def cut(self, at: int | None = None) -> None:
        """Ends the chunk, before the token `at`; the rest begins the next one."""
        at = len(self.tokens) if at is None else at
        padding = ROOM - at
        tokens = (self.tokenizer.bos, *self.tokens[:at], self.tokenizer.eos, *[self.tokenizer.pad] * padding)
        weights = (1.0, *self.weights[:at], 1.0, *[1.0] * padding)
        self.done.append(Chunk(tokens, weights, tuple(e for e in self.embeddings if e.offset < at)))
        self.tokens, self.weights = self.tokens[at:], self.weights[at:]
        self.embeddings = [e._replace(offset=e.offset - at) for e in self.embeddings if e.offset >= at]
        self.comma = None

    def finish(self) -> list[Chunk]:
        if self.tokens or not self.done:
            self.cut()
        return self.done


def clean(text: str) -> str:
    """Lower case, single spaces, and what ftfy mends: curly quotes, full-width letters, entities, broken encodings."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()  # nothing to mend, and much faster
    return " ".join(ftfy.fix_text(text).split()).lower()
