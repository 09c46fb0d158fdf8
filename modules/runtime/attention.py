"""Attention, softmax(q kᵀ · scale + mask) v, in several ways that give the same and differ in speed and memory, and
which of them the user and the machine want. Knows torch only, no networks.

q: (B, H, N, D); k, v: (B, H, M, D); mask: added to the logits, (B or 1, H or 1, N or 1, M) -> (B, H, N, D)."""

import logging
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modules.runtime.memory import Memory

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

AUTOMATIC = "Automatic"
SDP = "sdp - scaled dot product"
SDP_NO_MEM = "sdp-no-mem - scaled dot product without memory efficient attention"
SUB_QUADRATIC = "sub-quadratic"
XFORMERS = "xformers"
NONE = "None"
# A1111's other ways of cutting attention into slices: ours is the one above.
SLICED = ("InvokeAI", "Doggettx", "V1 - original v1")

DEFAULT_QUERIES = 1024  # rows a slice
WHOLE_KEYS = 256 * 2**20  # bytes that the logits of one slice may take before keys are cut too
TILE = 16  # keys; a number that is no multiple of it takes the processor's matrix unit twice the time
XFORMERS_CHANNELS = 256  # a head; more than that its kernels don't take on every card


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    backend: str = AUTOMATIC
    queries: int = DEFAULT_QUERIES  # rows a slice (sub-quadratic)
    keys: int | None = None  # a slice; None: the square root of their number
    percent: int | None = None  # of the device's memory, above which keys are cut too


@dataclass(frozen=True)
class Backend:
    """One way of computing attention."""

    name: str  # for people: the first word of the setting's choice
    attend: Attend
    missing: str = ""  # a sentence, where it is not what was asked for


def wanted_by(flags: Namespace) -> Wanted:
    """A1111's flags; the first of them counts, in A1111's order."""
    asked = {
        XFORMERS: flags.xformers or flags.force_enable_xformers,
        SDP_NO_MEM: flags.opt_sdp_no_mem_attention,
        SDP: flags.opt_sdp_attention,
        SUB_QUADRATIC: flags.opt_sub_quad_attention
        or flags.opt_split_attention
        or flags.opt_split_attention_v1
        or flags.opt_split_attention_invokeai,
        NONE: flags.disable_opt_split_attention,
    }
    backend = next((name for name, is_asked in asked.items() if is_asked), AUTOMATIC)
    queries, keys = flags.sub_quad_q_chunk_size or DEFAULT_QUERIES, flags.sub_quad_kv_chunk_size or None
    return Wanted(backend, queries, keys, flags.sub_quad_chunk_threshold)


def backend_for(setting: str, wanted: Wanted, device: torch.device) -> Backend:
    """`setting`: cross_attention_optimization. As in A1111 flags count where it is "Automatic"."""
    name = wanted.backend if setting == AUTOMATIC else setting
    if name == AUTOMATIC:
        name = best_for(device)
    if name in SLICED:
        _say(f"attention: {name} is one of A1111's ways of cutting it into slices; ours is {SUB_QUADRATIC}, taken now")
        name = SUB_QUADRATIC
    if name == XFORMERS:
        found = xformers_attention()
        if found is not None and device.type == "cuda":
            return Backend("xformers", found)
        why = "it is not installed (pip install xformers)" if found is None else f"it does not run on {device.type}"
        return Backend("sdp", sdp, f"attention by xformers was asked for, but {why}; torch's own is used")
    if name == SUB_QUADRATIC:
        return Backend("sub-quadratic", sliced_as(wanted, device))
    if name == SDP_NO_MEM:
        return Backend("sdp-no-mem", sdp_no_mem)
    return Backend("none", plain) if name == NONE else Backend("sdp", sdp)


def best_for(device: torch.device) -> str:
    """torch's own where it has kernels that never hold all logits: on NVIDIA's and AMD's cards, Intel's, and on
    processors (docs/decisions tells of what was measured against it). Elsewhere slices."""
    return SDP if device.type in ("cuda", "xpu", "cpu") else SUB_QUADRATIC


def sdp(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    over = -k.shape[2] % TILE
    if over and mask is None and q.device.type == "cpu" and q.dtype is not torch.float32:
        k, v = (functional.pad(x, (0, 0, 0, over)) for x in (k, v))
        mask = q.new_zeros(1, 1, 1, k.shape[2])
        mask[..., -over:] = -math.inf
    out: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out


def sdp_no_mem(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Without the kernel whose sums come in another order at every run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        return sdp(q, k, v, mask)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As it is written: all logits at once."""
    logits = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float()
    weights = (logits if mask is None else logits + mask).softmax(-1)
    out: Tensor = weights.to(v.dtype) @ v
    return out


def sub_quadratic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    queries: int = DEFAULT_QUERIES,
    keys: int | None = None,
    whole_keys: int = WHOLE_KEYS,
) -> Tensor:
    """Algorithm of Rabe and Staats (2021): slices of queries against slices of keys, with running maxima and sums in
    fp32. Slices of queries whose logits take no more than `whole_keys` bytes see all keys at once."""
    count = k.shape[2]
    size = keys or max(math.isqrt(count), TILE)
    rows = max(min(queries, q.shape[2]), 1)
    if q.shape[0] * q.shape[1] * rows * count * 4 <= whole_keys:
        size = count
    q = q * q.shape[-1] ** -0.5  # before the product: fp16 overflows less
    return torch.cat(
        [
            _rows(q[:, :, i : i + rows], k, v, _part(mask, 2, i, rows), size, v.dtype)
            for i in range(0, q.shape[2], rows)
        ],
        dim=2,
    )


def _rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
    """What these queries get, key slice by key slice."""
    peak = q.new_full((*q.shape[:3], 1), -math.inf, dtype=torch.float32)
    total = torch.zeros_like(peak)
    sums = torch.zeros((*q.shape[:3], v.shape[3]), dtype=torch.float32, device=q.device)
    for j in range(0, k.shape[2], size):
        logits = (q @ k[:, :, j : j + size].transpose(-1, -2)).float()
        part = _part(mask, 3, j, size)
        if part is not None:
            logits = logits + part
        higher = torch.maximum(peak, logits.amax(-1, keepdim=True))
        # Where all keys so far are masked the peak is still -inf, and -inf - -inf is no number.
        level = higher.masked_fill(higher == -math.inf, 0)
        weights = (logits - level).exp_()
        faded = (peak - level).exp_()
        total = total * faded + weights.sum(-1, keepdim=True)
        sums = sums * faded + (weights.to(dtype) @ v[:, :, j : j + size]).float()
        peak = higher
    return (sums / total.clamp_min(torch.finfo(torch.float32).tiny)).to(dtype)


def _part(mask: Tensor | None, dim: int, start: int, size: int) -> Tensor | None:
    return mask if mask is None or mask.shape[dim] == 1 else mask.narrow(dim, start, min(size, mask.shape[dim] - start))


def sliced_as(wanted: Wanted, device: torch.device) -> Attend:
    whole = WHOLE_KEYS if wanted.percent is None else Memory(device).total() * wanted.percent // 100
    return partial(sub_quadratic, queries=wanted.queries, keys=wanted.keys, whole_keys=whole)


@lru_cache(maxsize=1)
def xformers_attention() -> Attend | None:
    """None where it can't be imported. Not tried on a card by us: written after its documentation."""
    if find_spec("xformers") is None:
        return None
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:  # made for another torch
        log.warning("xformers is installed, but can't be imported: %s", error)
        return None
    return partial(by_xformers, memory_efficient_attention)


def by_xformers(attention: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Its tensors are (B, N, H, D)."""
    if mask is not None or q.shape[-1] > XFORMERS_CHANNELS or q.shape[-1] % 8:
        return sdp(q, k, v, mask)
    out: Tensor = attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v)))
    return out.transpose(1, 2)


def upcast(attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """In fp32, whatever the network computes in."""
    return attend(q.float(), k.float(), v.float(), None if mask is None else mask.float()).to(q.dtype)


@lru_cache(maxsize=32)
def _say(sentence: str) -> None:
    """Once a process."""
    log.info("%s", sentence)
