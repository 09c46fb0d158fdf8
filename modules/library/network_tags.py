"""Which files the tags of a prompt mean, and how strong each is to be. Plain data: knows no torch, and nothing of what
is inside of a file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from modules.library.header import ModelFileError, printable
from modules.library.networks import Kind, NetworkFile, NetworkLibrary
from modules.prompt.networks import NetworkTag, extract_networks

KINDS: dict[str, Kind] = {"lora": "lora", "lyco": "lora", "hypernet": "hypernetwork"}
MAX_WEIGHT = 1000.0
WORDS = {"lora": "LoRA", "hypernetwork": "hypernetwork", "embedding": "embedding"}


@dataclass(frozen=True)
class Network:
    """A file that is to be applied to the model."""

    file: NetworkFile
    mentioned: str  # the name that the prompt used
    unet: float = 1.0  # weight in the UNet
    text: float = 1.0  # weight in the text encoders
    dim: int | None = None  # how many of a LoRA's ranks count; None: all


class _BadWeight(ValueError):
    pass


def networks_from(tags: Iterable[NetworkTag], library: NetworkLibrary) -> tuple[list[Network], list[str]]:
    """In the order in which they are to be applied, and warnings about what could not be found or read. A1111 keeps one
    state for each name: of a LoRA that is named twice the last weights count, twice."""
    found: list[Network] = []
    warnings: dict[str, None] = {}
    for tag in tags:
        kind = KINDS.get(tag.kind.lower())
        name = tag.positional[0] if tag.positional else ""
        if kind is None:
            warnings[
                f"there is no kind of network called {printable(tag.kind[:40])!r}; <lora:…> and <hypernet:…> are"
            ] = None
            continue
        file = library.find(kind, name) if name else None
        if file is None:
            warnings[_missing(kind, name, library)] = None
        elif file.problem:
            warnings[f"{WORDS[kind]} {file.name}: {file.problem}; it was left out"] = None
        else:
            try:
                found.append(_weighted(Network(file, name), tag))
            except _BadWeight as error:
                warnings[f"{WORDS[kind]} {file.name}: {error}; it was left out"] = None
    last = {(network.file.kind, network.mentioned): network for network in found}
    return [last[network.file.kind, network.mentioned] for network in found], list(warnings)


def _missing(kind: Kind, name: str, library: NetworkLibrary) -> str:
    near = library.nearest(kind, name) if name else ()
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return f"there is no {WORDS[kind]} {printable(name[:100])!r}, it was left out{hint}"


def _weighted(network: Network, tag: NetworkTag) -> Network:
    """`name:te:unet:dyn` by position, `te= unet= dyn=` by name; what is missing is as the one before, first 1."""
    values, named = tag.positional[1:], tag.named
    text = _number(named.get("te", values[0] if values else "1"))
    if network.file.kind == "hypernetwork":
        return replace(network, unet=text, text=text)
    given = named.get("unet", values[1] if len(values) > 1 else None)
    unet = text if given is None else _number(given)
    dim = named.get("dyn", values[2] if len(values) > 2 else None)
    return replace(network, unet=unet, text=text, dim=None if dim is None else _count(dim))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _BadWeight(f"its weight {printable(text[:40])!r} is not a number") from None
    if not isfinite(value) or abs(value) > MAX_WEIGHT:
        raise _BadWeight(f"its weight {text[:40]} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise _BadWeight(f"dyn={printable(text[:40])!r} is not a whole number") from None
    if value < 1:
        raise _BadWeight(f"dyn={value} leaves none of its ranks; 1 or more are needed")
    return value


def with_default_networks(prompt: str, hypernetwork: str, lora: str, weight: float, library: NetworkLibrary) -> str:
    """The prompt with the networks that settings add to every picture (sd_hypernetwork, sd_lora), unless it names them
    itself; "None" is none. A1111 adds them to the prompt that the infotext tells, too."""
    given = {(KINDS.get(tag.kind.lower()), *tag.items[:1]) for tag in extract_networks(prompt)[1]}
    wanted: tuple[tuple[str, Kind, str], ...] = (("hypernet", "hypernetwork", hypernetwork), ("lora", "lora", lora))
    for word, kind, name in wanted:
        if name not in ("", "None") and (kind, name) not in given and library.find(kind, name):
            prompt += f"<{word}:{name}:{weight}>"
    return prompt


def hashes_of(networks: Sequence[Network], kind: Kind, library: NetworkLibrary) -> str | None:
    """The value of the infotext's "Lora hashes" (kind lora) or "Hypernet hashes": `name: hash, name: hash`."""
    entries = []
    for network in networks:
        if network.file.kind != kind:
            continue
        try:
            entries.append(f"{plain(network.mentioned)}: {library.shorthash(network.file)}")
        except ModelFileError:  # it was applied, so it is being replaced right now; the infotext then names no hash
            continue
    return ", ".join(entries) or None


def plain(name: str) -> str:
    """Without what separates names and hashes from each other."""
    return name.replace(":", "").replace(",", "")
