"""Textual inversion, Gal et al. (2022): a new word whose embedding learns, while all networks stay as they are.

Works on any table of token embeddings. Files are in the layout that A1111's `embeddings` folder takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KEY = "emb_params"


class NewWord(nn.Module):
    """A few vectors that stand in a prompt for tokens of a placeholder, `first`, `first + 1`, …"""

    def __init__(self, vectors: Tensor, first: int) -> None:
        """vectors: (n, D), where they start."""
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self.first = first

    def tokens(self) -> list[int]:
        """What stands for the word in a row of tokens; no prompt has these, for they lie behind the vocabulary."""
        return [self.first + k for k in range(len(self.vectors))]


@contextmanager
def known(table: nn.Embedding, word: NewWord) -> Iterator[None]:
    """Within it, the table also knows the new word's tokens; its own weights are never touched."""

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        asked.append(inputs[0])
        return (inputs[0].clamp(max=table.num_embeddings - 1),)

    def after(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ids = asked.pop()  # (B, L)
        which = (ids - word.first).clamp(0, len(word.vectors) - 1)
        return torch.where((ids >= word.first)[..., None], word.vectors[which].to(output.dtype), output)

    asked: list[Tensor] = []
    handles = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embedding_file(word: NewWord) -> dict[str, Tensor]:
    """Tensors of a safetensors file for the `embeddings` folder."""
    return {KEY: word.vectors.detach().float().contiguous()}
