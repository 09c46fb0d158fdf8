"""A prompt becomes conditioning: CLIP's text encoder with weighted words and chunks of 75 tokens."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modules.families.family import TextOptions
from modules.prompt.attention import Emphasis, parse_attention
from modules.prompt.old_emphasis import chunk_of_2022
from modules.prompt.tokens import Chunk, Tokenizer, chunk

READ_AT_ONCE = 16  # chunks: every layer of every one is in memory

# (network, its hidden states from the embeddings on, options) -> the one that becomes conditioning, (N, 77, D)
Layer = Callable[[Any, Sequence[Tensor], TextOptions], Tensor]


def clip_skip_layer(network: Any, layers: Sequence[Tensor], options: TextOptions) -> Tensor:
    """The last layer, or an earlier one that clip skip asks for, normalised: SD 1.x."""
    z: Tensor = network.final_layer_norm(layers[-min(options.clip_skip, len(layers) - 1)])
    return z


class ClipEncoder:
    """transformers' CLIPTextModel, with or without projection, its tokenizer, and which layer of it counts."""

    def __init__(self, network: Any, tokenizer: Tokenizer, device: torch.device, layer: Layer = clip_skip_layer):
        self.network, self.tokenizer, self.device, self.layer = network, tokenizer, device, layer

    def encode(self, texts: Sequence[str], options: TextOptions) -> Tensor:
        """(len(texts), 77·n, D) float32; every text is filled up with empty chunks to the same number n.

        The texts are one group: with the emphasis "Original" they share the mean that keeps the overall strength.
        """
        return self._encode(texts, options)[0]

    def encode_with_pooled(self, texts: Sequence[str], options: TextOptions) -> tuple[Tensor, Tensor]:
        """The same, and (len(texts), P): each text as one vector, made from its first chunk. For a network with
        projection."""
        cross, pooled = self._encode(texts, options)
        assert pooled is not None, "this text encoder has no projection"
        return cross, pooled

    def _encode(self, texts: Sequence[str], options: TextOptions) -> tuple[Tensor, Tensor | None]:
        chunked = [self.chunks(text, options) for text in texts]
        count = max(map(len, chunked))
        empty = chunk([("", 1.0)], self.tokenizer)[0]
        padded = [chunks + [empty] * (count - len(chunks)) for chunks in chunked]
        if options.embeddings is not None:
            for text, chunks in zip(texts, chunked, strict=True):
                options.embeddings.note(text, [used.name for part in chunks for used in part.embeddings])
        parts = [self._encode_chunks([chunks[i] for chunks in padded], options) for i in range(count)]
        return torch.cat([z for z, _ in parts], dim=1), parts[0][1]

    def key(self, texts: Sequence[str], options: TextOptions) -> Hashable:
        """Alike for what `encode` makes the same of, as long as the network's weights are the same. The textual
        inversions of the texts are noted, as when they are encoded."""
        chunked = [self.chunks(text, options) for text in texts]
        used = [[part.embeddings for part in chunks] for chunks in chunked]
        files: dict[str, Hashable] = {}
        if options.embeddings is not None:
            for text, chunks in zip(texts, used, strict=True):
                names = [one.name for part in chunks for one in part]
                options.embeddings.note(text, names)
                files |= {name: options.embeddings.identity(name) for name in names}
        read = tuple(tuple((part.tokens, part.weights, part.embeddings) for part in chunks) for chunks in chunked)
        return read, tuple(files.items()), options.emphasis, options.clip_skip, options.clip_l_skip

    def chunks(self, text: str, options: TextOptions) -> list[Chunk]:
        """The prompt as chunks of 77 tokens with their weights; at least one."""
        known = options.embeddings.spellings(text, self.tokenizer) if options.embeddings is not None else None
        if options.old_emphasis:
            return [chunk_of_2022(text, self.tokenizer, options.emphasis != "None", known)]
        pieces = [(text, 1.0)] if options.emphasis == "None" else parse_attention(text)
        return chunk(pieces, self.tokenizer, options.comma_backtrack, known)

    def _encode_chunks(self, chunks: Sequence[Chunk], options: TextOptions) -> tuple[Tensor, Tensor | None]:
        """(N, 77, D), and (N, P) if the network has a projection. Equal chunks are read once: of the texts of an
        alternating prompt there are few, often repeated."""
        distinct: dict[Any, tuple[int, Chunk]] = {}
        for part in chunks:
            distinct.setdefault((part.tokens, part.embeddings), (len(distinct), part))
        order = torch.tensor([distinct[part.tokens, part.embeddings][0] for part in chunks], device=self.device)
        unread = [part for _, part in distinct.values()]
        read = [self._read(unread[i : i + READ_AT_ONCE], options) for i in range(0, len(unread), READ_AT_ONCE)]
        z = torch.cat([part for part, _ in read])[order]
        weights = torch.tensor([part.weights for part in chunks], device=self.device, dtype=torch.float32)
        vectors = [vector for _, vector in read if vector is not None]
        return emphasised(z, weights, options.emphasis), torch.cat(vectors)[order] if vectors else None

    def _read(self, chunks: Sequence[Chunk], options: TextOptions) -> tuple[Tensor, Tensor | None]:
        """(N, 77, D), and (N, P) if the network has a projection."""
        tokens = torch.tensor([part.tokens for part in chunks], device=self.device)  # (N, 77)
        with self._inserted(chunks, options):
            given = self.network(input_ids=tokens, output_hidden_states=True)
        z = self.layer(self.network, given.hidden_states, options).float()
        vectors: Tensor | None = getattr(given, "text_embeds", None)
        return z, None if vectors is None else vectors.float()

    @contextmanager
    def _inserted(self, chunks: Sequence[Chunk], options: TextOptions) -> Iterator[None]:
        """With the vectors of textual inversions in the places that the chunks keep for them."""

        def insert(layer: Any, given: Any, embedded: Tensor) -> Tensor:  # (N, 77, D)
            embedded = embedded.clone()
            for row, part in zip(embedded, chunks, strict=True):
                for used in part.embeddings:
                    start = used.offset + 1  # after the start token
                    vectors = options.embeddings.vectors(used.name, self.network)[used.first :]
                    vectors = vectors[: len(row) - 1 - start].to(row)
                    row[start : start + len(vectors)] = vectors
            return embedded

        if not any(part.embeddings for part in chunks):
            yield
            return
        handle = self.network.get_input_embeddings().register_forward_hook(insert)
        try:
            yield
        finally:
            handle.remove()


def emphasised(z: Tensor, weights: Tensor, emphasis: Emphasis) -> Tensor:
    """z: (N, 77, D), weights: (N, 77) -> z with every token scaled by its weight.

    "Original" then restores the mean over all of z, so that weights move attention and not the overall strength.
    """
    if emphasis in ("None", "Ignore"):
        return z
    scaled = z * weights.unsqueeze(-1)
    if emphasis == "No norm":
        return scaled
    before, after = z.mean(), scaled.mean()
    return scaled * (before / after) if after != 0 else scaled
