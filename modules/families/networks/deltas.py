"""What a LoRA or one of its relatives adds to one weight: the formulas of each kind, from the tensors of its file.
Parts go by kohya's and LyCORIS' names; W is the weight as it is, with the networks before this one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

PEFT_MAGNITUDE = "lora_magnitude_vector"  # what is dora_scale elsewhere, always of the outputs

Parts = Mapping[str, Tensor]


class BadNetwork(ValueError):
    """Tensors that make up no change of this weight; the message says what was expected and what came."""


@dataclass(frozen=True)
class Delta:
    weight: Tensor | None  # of the weight's shape, float32
    bias: Tensor | None = None


@dataclass(frozen=True)
class _Raw:
    """Before alpha."""

    weight: Tensor | None
    rank: int | None = None
    bias: Tensor | None = None


def delta_of(parts: Parts, weight: Tensor, dim: int | None = None, multiplier: float = 1.0) -> Delta:
    """`weight`: W, of any precision; `dim`: how many ranks of a plain LoRA count. Raises BadNetwork."""
    kind = next((kind for kind, needed in KINDS if all(part in parts for part in needed)), None)
    if kind is None:
        raise BadNetwork(f"{', '.join(sorted(parts))} are no known kind of network")
    try:
        raw = kind(parts, weight, dim)
        scale = _scale(parts, raw.rank)
        change = None if raw.weight is None else _finished(raw.weight, parts, weight, scale, multiplier)
    except (RuntimeError, IndexError) as error:  # shapes that do not multiply
        raise BadNetwork(f"{shapes(parts)} do not fit a weight of the shape {tuple(weight.shape)}") from error
    if raw.bias is not None and raw.bias.numel() != weight.shape[0]:
        raise BadNetwork(f"a bias of {raw.bias.numel()} numbers does not fit {weight.shape[0]} outputs")
    return Delta(change, None if raw.bias is None else raw.bias * multiplier)


def _finished(change: Tensor, parts: Parts, weight: Tensor, scale: float, multiplier: float) -> Tensor:
    if change.numel() != weight.numel():
        raise BadNetwork(f"a change of the shape {tuple(change.shape)} does not fit one of {tuple(weight.shape)}")
    change = change.reshape(weight.shape)
    if "bias_values" in parts:  # LyCORIS' sparse part, which it calls a bias
        size = parts["bias_size"].long().tolist()
        if prod(size) != weight.numel():
            raise BadNetwork(f"a bias of the shape {tuple(size)} does not fit one of {tuple(weight.shape)}")
        place = parts["bias_indices"].long(), parts["bias_values"]
        sparse = torch.sparse_coo_tensor(*place, size, check_invariants=True)
        change = change + sparse.to_dense().to(change).reshape(weight.shape)
    if PEFT_MAGNITUDE in parts:  # (O,), or (1, O, 1, 1)
        change, scale = decomposed(change * scale, weight, parts[PEFT_MAGNITUDE].flatten()), 1.0
    elif "dora_scale" in parts:
        change, scale = decomposed(change * scale, weight, parts["dora_scale"]), 1.0
    return change if scale * multiplier == 1 else change * (scale * multiplier)  # each pass over a weight counts


def _scale(parts: Parts, rank: int | None) -> float:
    if "scale" in parts:
        scale = float(parts["scale"])
    elif "alpha" in parts and rank is not None:
        scale = float(parts["alpha"]) / rank
    else:
        scale = 1.0
    if not isfinite(scale):
        raise BadNetwork("its alpha or scale is not a number")
    return scale


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA (Liu et al. 2024): the changed weight gets the lengths that were learnt, of its rows or its columns; which,
    the shape of `magnitude` tells."""
    weight = weight.float()
    merged = weight + change
    rows = merged.shape[0]
    # (O, 1, …) or (O,): a length for each output, as PEFT and LyCORIS 3 do; (1, I, …): for each input, as before.
    by_output = magnitude.shape[0] == rows and magnitude.numel() == rows and (rows != 1 or merged.shape[1] == 1)
    if by_output:
        norm = merged.flatten(1).norm(dim=1)
    elif magnitude.numel() == merged.shape[1]:
        norm = merged.transpose(0, 1).flatten(1).norm(dim=1)
    else:
        raise BadNetwork(f"dora_scale of the shape {tuple(magnitude.shape)} does not fit {tuple(weight.shape)}")
    shape = [-1 if by_output else 1, 1 if by_output else -1, *[1] * (merged.dim() - 2)]
    changed: Tensor = merged * (magnitude.flatten() / norm).reshape(shape) - weight
    return changed


def lora(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """LoRA (Hu et al. 2021), LoCon, and with `lora_mid` in Tucker form."""
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    rank = down.shape[0]
    if rank == 0:
        raise BadNetwork("its rank is 0: there is nothing in it")
    bias = parts["lora_up.bias"] * _scale(parts, rank) if "lora_up.bias" in parts else None
    if "lora_mid.weight" in parts:
        return _Raw(tucker(parts["lora_mid.weight"], up.flatten(1).T, down.flatten(1)), rank, bias)
    if dim is not None:
        up, down = up[:, :dim], down[:dim]
    return _Raw(product(up, down), rank, bias)


def loha(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2022)."""
    factors = []
    for i in "12":
        a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
        factors.append(tucker(parts[f"hada_t{i}"], a, b) if f"hada_t{i}" in parts else product(a, b))
    return _Raw(factors[0] * factors[1], parts["hada_w1_b"].shape[0])


def lokr(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """Kronecker product of two matrices, each whole or of low rank."""
    rank = None
    factors = []
    for i in "12":
        if f"lokr_w{i}" in parts:
            factors.append(parts[f"lokr_w{i}"])
            continue
        a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
        rank = b.shape[0]
        factors.append(tucker(parts[f"lokr_t{i}"], a, b) if f"lokr_t{i}" in parts else product(a, b))
    one, two = factors
    if two.dim() > 2:
        one = one.reshape(*one.shape, *[1] * (two.dim() - one.dim()))
    return _Raw(torch.kron(one, two.contiguous()), rank)


def full(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """The differences themselves, of weight and bias."""
    return _Raw(parts.get("diff"), bias=parts.get("diff_b"))


def norm(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    return _Raw(parts.get("w_norm"), bias=parts.get("b_norm"))


def ia3(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """A factor for each output, or for each input (Liu et al. 2022)."""
    axis = 1 if bool(parts["on_input"]) else 0
    factors = parts["weight"].flatten()
    if factors.numel() != weight.shape[axis]:
        raise BadNetwork(f"{factors.numel()} factors do not fit a weight of the shape {tuple(weight.shape)}")
    return _Raw(weight.float() * factors.reshape([-1 if i == axis else 1 for i in range(weight.dim())]))


def glora(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """W·A + B, both of low rank (Chavan et al. 2023). LyCORIS has swapped the numbers since; A1111 knows the old names,
    and no alpha for them."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    outputs, inputs = weight.shape[:2]
    is_old = a1.shape[1] == a2.shape[0] == b1.shape[1] == inputs and b2.shape[0] == outputs
    a_down, a_up, b_down, b_up = (a1, a2, b1, b2) if is_old else (a2, a1, b2, b1)
    into = product(a_up, a_down)  # (I, I)
    weight = weight.float()
    flat = weight.transpose(0, 1).flatten(1)  # (I, O·…)
    moved = (into.flatten(1).T @ flat).reshape(weight.transpose(0, 1).shape).transpose(0, 1)
    if "bm.weight" in parts:
        added = tucker(parts["bm.weight"], b_up.flatten(1).T, b_down.flatten(1))
    else:
        added = product(b_up, b_down)
    return _Raw(moved + added.reshape(weight.shape), None if is_old else a_down.shape[0])


def oft(parts: Parts, weight: Tensor, dim: int | None) -> _Raw:
    """Rotations of the outputs: in blocks (Qiu et al. 2023), or as a butterfly (BOFT, Liu et al. 2024)."""
    outputs, weight = weight.shape[0], weight.float()
    if "oft_diag" in parts:  # LyCORIS' first form holds the rotations themselves
        rotations = parts["oft_diag"]
    else:
        constraint = float(parts["alpha"]) * outputs if "alpha" in parts else 0.0
        rotations = cayley(parts["oft_blocks"], constraint)
    size = rotations.shape[-1]
    if rotations.shape[-3] * size != outputs:
        raise BadNetwork(f"{rotations.shape[-3]} blocks of {size} do not make up the {outputs} outputs of this weight")
    if rotations.dim() == 4:
        turned = butterfly(rotations, weight)
    else:
        blocks = weight.reshape(-1, size, *weight.shape[1:])  # (blocks, size, …)
        turned = torch.einsum("knm,kn...->km...", rotations, blocks).reshape(weight.shape)
    if "rescale" in parts:
        turned = turned * parts["rescale"].reshape(-1, *[1] * (weight.dim() - 1))
    return _Raw(turned - weight)


def cayley(blocks: Tensor, constraint: float) -> Tensor:
    """(…, b, b) of any matrices -> rotations. The matrices' norm is held below `constraint`, if that is above 0."""
    skew = blocks - blocks.transpose(-1, -2)
    length = skew.norm()
    if 0 < constraint < length:
        skew = skew * (constraint / (length + 1e-8))
    eye = torch.eye(blocks.shape[-1], device=blocks.device)
    rotations: Tensor = (eye + skew) @ torch.linalg.inv(eye - skew)
    return rotations


def butterfly(rotations: Tensor, weight: Tensor) -> Tensor:
    """rotations: (m, blocks, b, b). At stage i, outputs that lie 2^i · b/2 apart are neighbours in a block."""
    size = rotations.shape[-1]
    turned = weight
    for i, stage in enumerate(rotations):
        reach = 2**i * (size // 2)
        apart = turned.reshape(-1, 2, reach, *weight.shape[1:]).transpose(1, 2)
        blocks = apart.reshape(-1, size, *weight.shape[1:])
        mixed = torch.einsum("bij,bj...->bi...", stage, blocks)
        turned = mixed.reshape(-1, reach, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    return turned


def product(up: Tensor, down: Tensor) -> Tensor:
    """(O, r, 1…) and (r, I, …) -> (O, I, …)."""
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core: (r, s, …), a: (r, O), b: (s, I) -> (O, I, …)."""
    return torch.einsum("ij...,ip,jq->pq...", core, a, b)


def shapes(parts: Parts) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(parts.items()) if tensor.dim() > 0)


Kind = Callable[[Parts, Tensor, "int | None"], _Raw]
# A1111's order: the first that has all of its parts.
KINDS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (lora, ("lora_up.weight", "lora_down.weight")),
    (loha, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    (ia3, ("weight", "on_input")),
    (lokr, ("lokr_w1", "lokr_w2")),
    (lokr, ("lokr_w1", "lokr_w2_a", "lokr_w2_b")),
    (lokr, ("lokr_w1_a", "lokr_w1_b", "lokr_w2")),
    (lokr, ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")),
    (full, ("diff",)),
    (full, ("diff_b",)),
    (norm, ("w_norm",)),
    (norm, ("b_norm",)),
    (glora, ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    (oft, ("oft_blocks",)),
    (oft, ("oft_diag",)),
)
