"""The folders in which each kind of model is looked for. The flags and config.json name them, never a request."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modules.library.folders import INDEX
from modules.library.kinds import Kind
from modules.library.walking import Bounds, Entries, Place, places
from modules.runtime.paths import Paths, absolute

UPSCALERS = {  # folder below models/, and the flag that replaces it
    "ESRGAN": "esrgan_models_path",
    "RealESRGAN": "realesrgan_models_path",
    "DAT": "dat_models_path",
    "SwinIR": "swinir_models_path",
    "ScuNET": "scunet_models_path",
    "LDSR": "ldsr_models_path",
}
Sorted = Callable[[Sequence[Path]], Mapping[Path, str]]  # files -> the kind of each, by what is inside of it


@dataclass(frozen=True)
class Root:
    """One folder of models of one kind."""

    path: Path  # absolute
    label: str = ""  # how pages call it; "" for the folder of our own
    group: str = ""  # of upscalers: ESRGAN, RealESRGAN, …
    names: Mapping[str, str] = field(
        default_factory=dict, compare=False
    )  # of folders right below it, where they are odd
    shown: Callable[[Sequence[str]], Sequence[str]] | None = field(
        default=None, compare=False
    )  # parts of a path inside
    enters: Callable[[str, str], bool] | None = field(default=None, compare=False)
    sorted_by: Sorted | None = field(default=None, compare=False)  # where kinds lie mixed
    bounds: Bounds | None = field(default=None, compare=False)

    def inside(self, path: str | Path) -> str:
        """ "folder/name.safetensors": a path below this root, as it is shown."""
        here, text = f"{self.path}{os.sep}", os.fspath(path)
        inside = text[len(here) :] if text.startswith(here) else os.path.relpath(text, self.path)
        parts = inside.split(os.sep)
        if self.names:
            parts[0] = self.names.get(parts[0], parts[0])
        return "/".join(self.shown(parts) if self.shown else parts)

    def folder_of(self, path: str | Path) -> str:
        """Where a file lies, as pages show it: never with a path of the machine."""
        return "/".join(part for part in (self.label, self.inside(path).rpartition("/")[0]) if part)


Roots = Mapping[Kind, tuple[Root, ...]]


def roots_from(paths: Paths, flags: Namespace) -> dict[Kind, tuple[Root, ...]]:
    """Where A1111's users keep them, and where what the program brings along lies. Some flags add a folder, others
    replace A1111's, as there."""
    models, shipped = paths.models_dir, paths.root / "models"

    def given(*names: str) -> list[Path]:
        return [absolute(value) for name in names if (value := getattr(flags, name, None))]

    folders: dict[Kind, list[Path]] = {
        "checkpoint": [models / "Stable-diffusion", shipped / "Stable-diffusion", *given("ckpt_dir")],
        "vae": [models / "VAE", *given("vae_dir")],
        "lora": [
            *(given("lora_dir") or [models / "Lora"]),
            *(given("lyco_dir_backcompat") or [models / "LyCORIS"]),
            shipped / "Lora",
        ],
        "embedding": [
            *(given("embeddings_dir") or [paths.data_dir / "embeddings", models / "embeddings"]),
            shipped / "embeddings",
        ],
        "hypernetwork": given("hypernetwork_dir") or [models / "hypernetworks"],
        "controlnet": [models / "ControlNet", *given("controlnet_dir")],
        "text_encoder": [models / "text_encoder", models / "clip", *given("text_encoder_dir")],
        "unet": [models / "unet", models / "diffusion_models"],
    }
    own = {os.path.abspath(folder) for folder in (shipped, models, paths.data_dir)}
    roots: dict[Kind, tuple[Root, ...]] = {}
    for kind, found in folders.items():
        roots[kind] = tuple(Root(path, "" if str(path.parent) in own else path.name) for path in _different(found))
    roots["upscaler"] = tuple(
        Root(absolute(value) if value else models / group, absolute(value).name if value else group, group)
        for group, flag in UPSCALERS.items()
        for value in [getattr(flags, flag, None)]
    )
    return roots


def _different(folders: Iterable[Path]) -> Iterable[Path]:
    return dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders)


def bounded(roots: Roots, also: Iterable[Path]) -> dict[Kind, tuple[Root, ...]]:
    """With links allowed from each of them into every other, and into what else the user named."""
    bounds = Bounds({*(root.path for found in roots.values() for root in found), *also})
    return {kind: tuple(replace(root, bounds=bounds) for root in found) for kind, found in roots.items()}


def as_roots(folders: Iterable[Path | Root]) -> tuple[Root, ...]:
    """Each once."""
    roots: dict[Path, Root] = {}
    for folder in folders:
        root = folder if isinstance(folder, Root) else Root(Path(os.path.abspath(folder)))
        roots.setdefault(root.path, root)
    bounds = Bounds(roots)
    return tuple(root if root.bounds else replace(root, bounds=bounds) for root in roots.values())


def places_in(
    roots: Iterable[Root],
    kind: Kind,
    endings: tuple[str, ...],
    is_whole: Callable[[Entries], bool] = lambda entries: False,
) -> Iterator[tuple[Root, Place]]:
    """All folders of these roots, none twice, with the files of this kind."""
    seen: set[tuple[int, int]] = set()
    for root in roots:
        whole = is_whole if root.sorted_by is None else _is_diffusers
        for place in places(root.path, endings, whole, root.enters or _always, root.bounds, seen):
            if root.sorted_by is None or not (place.files or place.is_whole):
                yield root, place
            elif place.is_whole:
                if kind == "checkpoint":
                    yield root, place
            else:
                paths = [Path(entry.path) for entry in place.files if entry.name not in place.outside]
                kinds = root.sorted_by(paths)
                files = [entry for entry in place.files if kinds.get(Path(entry.path)) == kind]
                yield root, replace(place, files=files)


def folders_below(root: Root) -> Iterator[str]:
    """Every folder that files of it may lie in, itself too."""
    for place in places(root.path, (), enters=root.enters or _always, bounds=root.bounds):
        yield place.path


def _is_diffusers(entries: Entries) -> bool:
    return any(entry.name == INDEX for entry in entries)


def _always(folder: str, name: str) -> bool:
    return True
