"""Which upscalers there are: the plain ones, and the networks in A1111's folders, under A1111's names. Torch-free: what
they do is modules/postprocess and modules/generation."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from modules.library.header import Header, ModelFileError, open_regular, printable, read_header, sniff
from modules.library.roots import Root, as_roots, places_in
from modules.library.walking import OUTSIDE

log = logging.getLogger(__name__)

LATENT_UPSCALE_MODES: Mapping[str, tuple[str, bool]] = {  # torch's interpolation, with or without antialiasing
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
PLAIN = ("None", "Lanczos", "Nearest")
A1111_NAMES: Mapping[str, str] = {  # of files that A1111 downloads, by their stems in small letters
    "esrgan": "ESRGAN_4x",
    "realesrgan_x4plus": "R-ESRGAN 4x+",
    "realesrgan_x4plus_anime_6b": "R-ESRGAN 4x+ Anime6B",
    "realesrgan_x2plus": "R-ESRGAN 2x+",
    "realesr-general-x4v3": "R-ESRGAN General 4xV3",
    "realesr-general-wdn-x4v3": "R-ESRGAN General WDN 4xV3",
    "realesr-animevideov3": "R-ESRGAN AnimeVideo",
    "swinir_4x": "SwinIR 4x",
    "scunet": "ScuNET GAN",
    "scunet_psnr": "ScuNET PSNR",
    "dat_x2": "DAT x2",
    "dat_x3": "DAT x3",
    "dat_x4": "DAT x4",
}
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
SUPPORTED = "ESRGAN and Real-ESRGAN networks (RRDB and compact) can be used"


class UnknownUpscaler(ValueError):
    """No upscaler goes by this name. The message says which one may be meant."""


@dataclass(frozen=True)
class Upscaler:
    name: str
    scale: int = 4  # of one application; for a .pth, what its name says
    path: Path | None = None  # None: needs no network
    kind: str = ""  # the folder that it was found in
    problem: str | None = None  # why it cannot be used

    @property
    def model_name(self) -> str | None:
        return printable(self.path.stem) if self.path else None


class UpscalerLibrary:
    """`folders`: kind -> folders. Every call looks at the disk: there are few such files, and only headers are read."""

    def __init__(self, folders: Mapping[str, Sequence[Path | Root]]):
        self._roots = {kind: as_roots(found) for kind, found in folders.items()}

    @classmethod
    def of(cls, roots: Sequence[Root]) -> "UpscalerLibrary":
        return cls({group: [root for root in roots if root.group == group] for group in (root.group for root in roots)})

    def list(self) -> tuple[Upscaler, ...]:
        """The plain ones, then the networks by name, as A1111 orders them. No name comes twice."""
        found: dict[str, Upscaler] = {}
        for kind, roots in self._roots.items():
            for root, place in places_in(roots, "upscaler", SUFFIXES):
                for entry in place.files:
                    path = Path(entry.path)
                    is_outside = entry.name in place.outside
                    upscaler = _look_at(path, kind) if not is_outside else _named(path, kind, OUTSIDE)
                    names = (upscaler.name, printable(path.name), printable(f"{root.label}/{path.name}"))
                    name = next((name for name in names if name not in (*found, *PLAIN)), names[0])
                    found.setdefault(name, replace(upscaler, name=name))
        plain = [Upscaler(name) for name in PLAIN]
        return (*plain, *sorted(found.values(), key=lambda upscaler: upscaler.name.casefold()))

    def find(self, name: str) -> Upscaler:
        """By name, in any case. Raises UnknownUpscaler, also for one that cannot be used."""
        known = {upscaler.name.casefold(): upscaler for upscaler in self.list()}
        upscaler = known.get(name.casefold())
        if upscaler is None:
            near = get_close_matches(name.casefold(), known, n=1, cutoff=0.4)
            hint = f"did you mean {known[near[0]].name!r}?" if near else f"there are {', '.join(PLAIN)}"
            raise UnknownUpscaler(f"there is no upscaler {printable(name[:80])!r}; {hint}")
        if upscaler.problem:
            raise UnknownUpscaler(f"the upscaler {upscaler.name!r} cannot be used: {upscaler.problem}")
        return upscaler


def architecture(names: Mapping[str, tuple[int, ...]]) -> tuple[str, int] | None:
    """What network has tensors of these names and shapes, and how many times larger it makes a picture; None: none
    that we have. ("RRDB", 4), ("RRDB old", 2), ("compact", 4) …"""
    if "conv_first.weight" in names and "conv_last.weight" in names and _any(names, r"(body|RRDB_trunk)\.0\.[rR]"):
        ups = sum(1 for name in names if re.fullmatch(r"(conv_up|upconv)\d\.weight", name))
        squeeze = {3: 1, 12: 2, 48: 4}.get(names["conv_first.weight"][1], 0)
        return ("RRDB", 2**ups // squeeze) if squeeze and ups else None
    if "model.0.weight" in names and _any(names, r"model\.1\.sub\.0\.RDB1\."):
        tail = [int(name.split(".")[1]) for name in names if re.fullmatch(r"model\.\d+\.weight", name)]
        plain = len(names["model.0.weight"]) == 4 and names["model.0.weight"][1] == 3
        return ("RRDB old", 2 ** ((max(tail) - 4) // 3)) if plain and max(tail) in (4, 7, 10, 13) else None
    if "body.0.weight" in names and "body.1.weight" in names and len(names["body.1.weight"]) == 1:
        last = max(int(name.split(".")[1]) for name in names if re.fullmatch(r"body\.\d+\.weight", name))
        scale = round((names[f"body.{last}.weight"][0] / 3) ** 0.5)
        whole = 3 * scale * scale == names[f"body.{last}.weight"][0] and names["body.0.weight"][1] == 3
        return ("compact", scale) if whole and last % 2 == 0 else None
    return None


def shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in header.tensors.items()}


def _named(path: Path, kind: str, problem: str | None = None) -> Upscaler:
    name = A1111_NAMES.get(path.stem.casefold(), printable(path.stem))
    return Upscaler(name, _scale_by_name(path.stem), path, kind, problem)


def _look_at(path: Path, kind: str) -> Upscaler:
    upscaler = _named(path, kind)
    try:
        if path.suffix.lower() == ".safetensors":
            found = architecture(shapes(read_header(path)))
            return replace(upscaler, scale=found[1]) if found else replace(upscaler, problem=_unsupported(kind))
        with os.fdopen(open_regular(path), "rb") as file:
            start = file.read(256)
    except ModelFileError as error:
        return replace(upscaler, problem=error.reason)
    except OSError as error:
        return replace(upscaler, problem=f"cannot be read: {error.strerror or error}")
    if not start:
        return replace(upscaler, problem="this file is empty: the download failed; download it again")
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
        return replace(upscaler, problem=sniff(start) or "this is no file of PyTorch")
    return upscaler if kind in ("ESRGAN", "RealESRGAN") else replace(upscaler, problem=_unsupported(kind))


def _unsupported(kind: str) -> str:
    what = "its architecture is" if kind in ("ESRGAN", "RealESRGAN") else f"{kind} networks are"
    return f"{what} not supported; {SUPPORTED}"


def _scale_by_name(stem: str) -> int:
    found = re.search(r"(?:^|[^0-9a-z])([1248])x|x([1248])(?![0-9])", stem.casefold())
    return int(found[1] or found[2]) if found else 4


def _any(names: Mapping[str, tuple[int, ...]], pattern: str) -> bool:
    return any(re.match(pattern, name) for name in names)
