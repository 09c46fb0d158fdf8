"""Token merging (Bolya and Hoffman 2023): self-attention at the UNet's full resolution over fewer tokens, in which the
most alike ones are joined. Deterministic: of every 2×2 tokens the first stays."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from modules.families.family import Model


def ratio_for(ratio: float, img2img: float, hires: float, *, is_img2img: bool = False, is_hires: bool = False) -> float:
    """Which of the settings token_merging_ratio, …_img2img and …_hr counts: 0 is "as the general one"."""
    if is_hires:
        return hires or ratio
    return (img2img or ratio) if is_img2img else ratio


@contextmanager
def token_merging(model: Model, ratio: float) -> Iterator[None]:
    """`ratio`: the share of tokens that is joined with others, 0–0.75."""
    with ExitStack() as undo:
        if ratio > 0:
            unet = model.components["unet"]
            size: list[tuple[int, int]] = []  # of the latent that is being denoised
            watch = unet.register_forward_pre_hook(partial(_note_size, size))
            undo.callback(watch.remove)
            for module in unet.modules():
                if type(module).__name__ == "BasicTransformerBlock":
                    _wrap(module, ratio, size, undo)
        yield


def _note_size(size: list[tuple[int, int]], unet: Any, given: tuple[Any, ...]) -> None:
    size[:] = [tuple(given[0].shape[-2:])]


def _wrap(block: Any, ratio: float, size: list[tuple[int, int]], undo: ExitStack) -> None:
    """Likeness is measured on what enters the block, and its self-attention is fed with the normalised rest."""
    merging: list[Merging | None] = [None]

    def before(_block: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = given[0] if given else named["hidden_states"]
        merging[0] = merging_for(x, size[0], ratio)

    attend = block.attn1.forward

    def attention(hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        merged = merging[0]
        if merged is None:
            return attend(hidden_states, *rest, **named)  # type: ignore[no-any-return]
        return merged.apart(attend(merged.together(hidden_states), *rest, **named))

    handle = block.register_forward_pre_hook(before, with_kwargs=True)
    block.attn1.forward = attention
    undo.callback(handle.remove)
    undo.callback(delattr, block.attn1, "forward")


class Merging:
    """Which tokens of a picture are joined with which."""

    def __init__(self, kept: Tensor, joined: Tensor, stays: Tensor, goes_to: Tensor, tokens: int):
        self._kept, self._joined = kept, joined  # (B, K), (B, R): positions of tokens that may be joined, and are
        self._stays = stays  # (S,): positions that others are joined to
        self._goes_to = goes_to  # (B, R): indices into `stays`
        self._tokens = tokens

    def together(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N - R, C): what is joined counts as the mean."""
        stays = x[:, self._stays].scatter_reduce(1, _wide(self._goes_to, x), _taken(x, self._joined), reduce="mean")
        return torch.cat([_taken(x, self._kept), stays], dim=1)

    def apart(self, x: Tensor) -> Tensor:
        """(B, N - R, C) -> (B, N, C): what was joined gets what its group got."""
        kept, stays = x[:, : self._kept.shape[1]], x[:, self._kept.shape[1] :]
        whole = x.new_empty(x.shape[0], self._tokens, x.shape[2])
        whole[:, self._stays] = stays
        whole.scatter_(1, _wide(self._kept, x), kept)
        return whole.scatter_(1, _wide(self._joined, x), _taken(stays, self._goes_to))


def merging_for(x: Tensor, size: tuple[int, int], ratio: float) -> Merging | None:
    """x: (B, N, C), the tokens of a latent of this size (height, width). None where the UNet works on a smaller one."""
    height, width = size
    tokens = x.shape[1]
    if ceil(sqrt(height * width // tokens)) > 1:
        return None
    grid = torch.arange(height * width, device=x.device).view(height, width)
    first = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    first[: height // 2 * 2 : 2, : width // 2 * 2 : 2] = True
    stays, others = grid[first], grid[~first]
    count = min(int(tokens * ratio), len(others))
    if count < 1 or len(stays) < 1:
        return None
    unit = x / x.norm(dim=-1, keepdim=True)
    likeness, nearest = (unit[:, others] @ unit[:, stays].transpose(1, 2)).max(dim=-1)  # (B, N - S) each
    order = likeness.argsort(dim=-1, descending=True)
    joined, kept = order[:, :count], order[:, count:]
    return Merging(others[kept], others[joined], stays, nearest.gather(1, joined), tokens)


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def _taken(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _wide(index, x))
