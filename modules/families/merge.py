"""Merging checkpoints, tensor by tensor: what becomes of each is settled by the headers, then the result is written
from its first byte to its last. In memory there is never more than a few megabytes, beside the pages of the tensor that
is read. Knows no folders and no settings."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from modules.families import ldm
from modules.families.formats import opened
from modules.families.loader import FAMILIES
from modules.families.weights import DTYPES, INTEGERS, Weights
from modules.library.header import DTYPE_BITS, MAX_HEADER_BYTES, Header, ModelFileError, TensorInfo
from modules.library.recipes import FIRST, PARENTS, PLAIN, SPECIAL, Method, Special

CHUNK = 2**17  # values that are worked on at once: they fit into a core's cache, which halves the time
PARTS = (ldm.UNET, ldm.VAE, "cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")
OF_A_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
FP8 = ("F8_E4M3", "F8_E5M2")
NAMES = "ABC"


class MergeError(ValueError):
    """These can't be merged so; the message is a sentence."""


@dataclass(frozen=True)
class Source:
    """An open or unopened model file."""

    path: Path
    header: Header


@dataclass(frozen=True)
class Planned:
    """One tensor of the result: a mixture of the parents' (in the order A, B, C), or a copy of the one there is."""

    name: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    parents: tuple[tuple[int, str], ...]  # (number of the source, its name there)
    channels: int = 0  # of a convolution whose first channels alone are mixed; 0: all of it is

    @property
    def size(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class MergePlan:
    """What write() needs. `sources`: A, B, C as far as they take part, then the VAE if one is baked in."""

    method: Method
    multiplier: float
    sources: tuple[Source, ...]
    tensors: tuple[Planned, ...]
    special: Special
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.size for tensor in self.tensors)


def merge_plan(
    parents: Sequence[Source],
    method: Method,
    multiplier: float,
    half: bool = False,
    vae: Source | None = None,
    discarded: frozenset[str] = frozenset(),
) -> MergePlan:
    """`parents`: as many as the method has; `discarded`: names of A's that the result does not get. Raises MergeError
    or ModelFileError, with a sentence, for what does not fit together."""
    parents = parents[: PARENTS[method]]
    _refuse_other_families(parents)
    for source in parents:
        _refuse_quantised(source)
    _refuse_other_layouts(parents)
    first, others = parents[0].header, [_by_common_names(parent.header) for parent in parents[1:]]
    baked = _names_in_vae(vae) if vae else {}
    found: list[Planned] = []
    special: Special = ""
    for name, info in sorted(first.tensors.items(), key=lambda item: item[1].start):
        if name in discarded:
            continue
        if name in baked:
            found.append(_baked(name, baked[name], info, vae, len(parents), half))
            continue
        own = [names.get(_common(name)) for names in others]
        named = [(0, name), *((number, theirs) for number, theirs in enumerate(own, start=1) if theirs)]
        infos = [parents[number].header.tensors[theirs] for number, theirs in named]
        floats = all(one.dtype in DTYPES for one in infos) and not name.endswith(".position_ids")
        if not others or None in own or not floats:
            found.append(Planned(name, _stored_as([info], half), info.shape, ((0, name),)))
            continue
        channels = _common_channels(name, infos, parents)
        special = SPECIAL[info.shape[1]] if channels else special
        found.append(Planned(name, _stored_as(infos, half), info.shape, tuple(named), channels))
    missing = [name for name in baked if name not in first.tensors and name not in discarded]
    for name in missing:
        found.append(_baked(name, baked[name], None, vae, len(parents), half))
    if not found:
        raise MergeError("nothing would be left: the pattern discards every tensor")
    # As safetensors' own files: the widest values first, so that each lies at a multiple of its width.
    found.sort(key=lambda one: -DTYPE_BITS[one.dtype])
    sources = (*parents, *([vae] if vae else []))
    return MergePlan(method, multiplier, sources, tuple(found), special, tuple(_warnings(parents, others, found)))


def header_bytes(plan: MergePlan, metadata: Mapping[str, str]) -> bytes:
    """What the file begins with."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in plan.tensors:
        offsets = [position, position + tensor.size]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.size
    written = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    written += b" " * (-len(written) % 8)
    if len(written) > MAX_HEADER_BYTES:
        size = sum(len(key) + len(value) for key, value in metadata.items())
        raise MergeError(
            f"the metadata ({size} characters) make the header longer than {MAX_HEADER_BYTES >> 20} MiB; "
            "save without those of the merged models"
        )
    return len(written).to_bytes(8, "little") + written


def write(plan: MergePlan, header: bytes, file: IO[bytes], watch: Callable[[int, int], None]) -> None:
    """The whole result. `watch(done, total)` is told bytes of weights, and may raise to stop. Raises MergeError for
    values that are no numbers, ModelFileError for files that changed, OSError."""
    done, total = 0, plan.size
    with ExitStack() as stack, torch.inference_mode():
        files = [stack.enter_context(opened(source.path, source.header)) for source in plan.sources]
        file.write(header)
        for tensor in plan.tensors:
            watch(done, total)
            for chunk in _chunks(plan, tensor, files):
                file.write(chunk.numpy().data)
                done += chunk.numel()
                watch(done, total)
            for number, name in tensor.parents:
                files[number].done_with(name)


def formula(method: Method, multiplier: float, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Weighted sum: A·(1−M) + B·M; add difference: A + (B−C)·M."""
    if method == "Add difference":
        assert c is not None
        return (b - c).mul_(multiplier).add_(a)
    return (a * (1 - multiplier)).add_(b * multiplier)


# --- which tensors there will be -------------------------------------------------------------------------------------


def _refuse_other_families(parents: Sequence[Source]) -> None:
    families = [next((one.name for one in FAMILIES if one.matches(parent.header)), None) for parent in parents]
    if len(set(families)) < 2:
        return
    told = [
        f"{letter} ({parent.path.name}) is {family or 'of an unknown family'}"
        for letter, parent, family in zip(NAMES, parents, families, strict=False)
    ]
    raise MergeError(f"models of different families can't be merged: {', '.join(told)}")


def _refuse_quantised(source: Source) -> None:
    for name, info in source.header.tensors.items():
        scaled = name.endswith(("scale_weight", "weight_scale")) or name == "scaled_fp8"
        packed = name.endswith(".weight") and info.dtype not in DTYPES
        if scaled or packed:
            kind = "scaled" if scaled else info.dtype
            raise ModelFileError(
                source.path, f"its weights are quantised ({name}: {kind}) and can't be merged; get it in fp16 or bf16"
            )


def _refuse_other_layouts(parents: Sequence[Source]) -> None:
    """A network that two files store by different names would silently stay A's."""
    shared = [_by_common_names(parent.header) for parent in parents]
    for number, other in enumerate(shared[1:], start=1):
        for part in PARTS:
            own = {name for name in shared[0] if name.startswith(part)}
            theirs = {name for name in other if name.startswith(part)}
            if own and theirs and not own & theirs:
                raise MergeError(
                    f"A and {NAMES[number]} store {part.rstrip('.')} by different names (one is a diffusers folder?); "
                    "merge two files, or two folders"
                )
        if not shared[0].keys() & other.keys():
            raise MergeError(f"{parents[number].path.name} has no tensor that {parents[0].path.name} has")


def _by_common_names(header: Header) -> dict[str, str]:
    return {_common(name): name for name in header.tensors}


def _common(name: str) -> str:
    """Some old files leave `text_model.` out of the names of CLIP."""
    return re.sub(r"^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_model\.", r"\1.transformer.", name)


def _common_channels(name: str, infos: Sequence[TensorInfo], parents: Sequence[Source]) -> int:
    """0: all of the tensor is mixed; else how many channels the others have of those of A's first convolution. Raises
    MergeError for shapes that don't fit."""
    own, *others = [_without_ones(info.shape) if name != FIRST else info.shape for info in infos]
    if all(shape == own for shape in others):
        return 0
    channels = [shape[1] if len(shape) == 4 else 0 for shape in (own, *others)]
    alike = name == FIRST and len({(shape[0], *shape[2:]) for shape in (own, *others) if len(shape) == 4}) == 1
    if alike and channels[0] in SPECIAL and set(channels[1:]) == {PLAIN}:
        return PLAIN
    strange = next(number for number, shape in enumerate(others, start=1) if shape != own)
    kind = SPECIAL.get(channels[strange])
    if alike and kind and channels[0] == PLAIN:
        raise MergeError(
            f"{parents[strange].path.name} is an {kind} model and {parents[0].path.name} is not: choose it as A"
        )
    if alike and len(others) == 2:
        raise MergeError(f"with an {SPECIAL.get(channels[0], 'unusual')} model as A, B and C must be plain models both")
    told = " and ".join(
        f"{'×'.join(map(str, infos[number].shape))} in {parents[number].path.name}" for number in (0, strange)
    )
    raise MergeError(f"{name} has the shape {told}; models of different sizes can't be merged")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1×1 convolution in one file is a linear layer in another."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _stored_as(infos: Sequence[TensorInfo], half: bool) -> str:
    """The dtype of the result: float16 if that was asked for, else one that holds the values of all parents."""
    dtypes = {info.dtype for info in infos}
    if not dtypes <= set(DTYPES):
        return infos[0].dtype
    if half:
        return "F16"
    if len(dtypes) == 1:
        return infos[0].dtype
    wide = sorted(dtypes - set(FP8), key=lambda name: DTYPE_BITS[name])
    if not wide or wide == ["BF16", "F16"] or wide == ["F16", "BF16"]:
        return "F32" if wide else "F16"
    return wide[-1]


def _names_in_vae(vae: Source) -> dict[str, str]:
    """The names in the checkpoint -> the names in the VAE's file, or in the checkpoint that it is taken from."""
    prefix = ldm.VAE if any(name.startswith(ldm.VAE) for name in vae.header.tensors) else ""
    if f"{prefix}decoder.conv_in.weight" not in vae.header.tensors:
        raise ModelFileError(vae.path, f"this is no VAE: it has no tensor {prefix}decoder.conv_in.weight")
    own = {name.removeprefix(prefix): name for name in vae.header.tensors if name.startswith(prefix)}
    return {ldm.VAE + short: name for short, name in own.items() if short.startswith(OF_A_VAE)}


def _baked(name: str, theirs: str, info: TensorInfo | None, vae: Source | None, number: int, half: bool) -> Planned:
    assert vae is not None
    new = vae.header.tensors[theirs]
    if info and _without_ones(info.shape) != _without_ones(new.shape):
        shapes = [("×".join(map(str, shape))) for shape in (new.shape, info.shape)]
        raise MergeError(
            f"{vae.path.name} is no VAE for this model: {theirs} has the shape {shapes[0]}, not {shapes[1]}"
        )
    return Planned(name, _stored_as([new], half), info.shape if info else new.shape, ((number, theirs),))


def _warnings(
    parents: Sequence[Source], others: Sequence[Mapping[str, str]], found: Sequence[Planned]
) -> Iterator[str]:
    own = _by_common_names(parents[0].header)
    copied = {tensor.name for tensor in found if tensor.parents == ((0, tensor.name),)}
    for letter, parent, names in zip(NAMES[1:], parents[1:], others, strict=False):
        lacking = [name for common, name in own.items() if common not in names and _counts(name) and name in copied]
        if lacking:
            yield f"{len(lacking)} tensors are not in {parent.path.name} and stay A's, such as {lacking[0]}"
        spare = [name for common, name in names.items() if common not in own and _counts(name)]
        if spare:
            yield f"{len(spare)} tensors of {letter} have no place in A and are left out, such as {spare[0]}"


def _counts(name: str) -> bool:
    """Whether its absence would change what the model does."""
    return not name.endswith(".position_ids") and name.startswith(PARTS)


# --- their values ----------------------------------------------------------------------------------------------------


def _chunks(plan: MergePlan, tensor: Planned, files: Sequence[Weights]) -> Iterator[Tensor]:
    """Its bytes, (N,) uint8, piece by piece."""
    places = [_Place(files[number], name) for number, name in tensor.parents]
    wanted = DTYPES.get(tensor.dtype)
    if wanted is None:
        raw = places[0].bytes
        yield from (raw[start : start + CHUNK] for start in range(0, len(raw), CHUNK))
        return
    if tensor.channels:
        yield _as_stored(_mixed_channels(plan, tensor, places), wanted, tensor, places)
        return
    exact = torch.float64 if any(place.dtype == torch.float64 for place in places) else torch.float32
    for start in range(0, prod(tensor.shape), CHUNK):
        values = [place.values(start, start + CHUNK) for place in places]
        if len(values) == 1:
            yield _as_stored(values[0], wanted, tensor, places)
        else:
            result = formula(plan.method, plan.multiplier, *(one.to(exact) for one in values))
            yield _as_stored(result, wanted, tensor, places)


class _Place:
    """A tensor in an open file, as a row of values."""

    def __init__(self, file: Weights, name: str):
        self.file, self.name = file, name
        self.info = file.header.tensors[name]
        self.bytes = file.stored(name)
        self.dtype = DTYPES.get(self.info.dtype) or INTEGERS.get(self.info.dtype) or torch.uint8

    def values(self, start: int, end: int) -> Tensor:
        width = self.dtype.itemsize
        piece = self.bytes[start * width : end * width]
        if piece.data_ptr() % width or piece.storage_offset() % width:  # headers of odd length leave the data unaligned
            piece = piece.clone()
        return piece.view(self.dtype)


def _mixed_channels(plan: MergePlan, tensor: Planned, places: Sequence[_Place]) -> Tensor:
    """The first convolution of an inpainting or editing model: what it has beside a plain model's channels stays."""
    whole = [place.values(0, prod(place.info.shape)).float().view(place.info.shape) for place in places]
    own = whole[0][:, : tensor.channels]
    mixed = formula(plan.method, plan.multiplier, own, *whole[1:])
    return torch.cat([mixed, whole[0][:, tensor.channels :]], dim=1).view(-1)


def _as_stored(values: Tensor, dtype: torch.dtype, tensor: Planned, places: Sequence[_Place]) -> Tensor:
    stored = values.to(dtype)
    if not _finite(stored):
        raise MergeError(_why_not_finite(tensor, places))
    return stored.view(torch.uint8)


def _finite(values: Tensor) -> bool:
    values = values.float() if values.dtype.itemsize == 1 else values
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def _why_not_finite(tensor: Planned, places: Sequence[_Place]) -> str:
    for place in places:
        size = prod(place.info.shape)
        bad = sum(
            int((~place.values(start, start + CHUNK).float().isfinite()).sum()) for start in range(0, size, CHUNK)
        )
        if bad:
            return (
                f"{place.file.path.name}: the tensor {place.name!r} holds {bad} values that are no numbers (NaN or "
                f"infinity) among {size}; get another copy of it, or discard the tensor by its name"
            )
    return f"the merged tensor {tensor.name!r} has values beyond the range of {tensor.dtype}; save it in wider values"
