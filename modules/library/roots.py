"""The folders in which each kind of model is looked for. The flags and config.json name them, never a request."""

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modules.library.facts import Kind
from modules.library.upscalers import FLAGS as UPSCALERS
from modules.runtime.paths import Paths, absolute


@dataclass(frozen=True)
class Root:
    """One folder of models of one kind."""

    path: Path  # absolute
    label: str = ""  # how pages call it; "" for the folder of our own
    group: str = ""  # of upscalers: ESRGAN, RealESRGAN, …

    def folder_of(self, path: Path) -> str:
        """Where a file lies, as pages show it: never with a path of the machine."""
        inside = path.parent.relative_to(self.path).as_posix()
        return "/".join(part for part in (self.label, "" if inside == "." else inside) if part)


Roots = Mapping[Kind, tuple[Root, ...]]


def roots_from(paths: Paths, flags: Namespace) -> Roots:
    """Where A1111's users keep them. Some flags add a folder, others replace A1111's, as there."""
    models = paths.models_dir

    def given(*names: str) -> list[Path]:
        return [absolute(value) for name in names if (value := getattr(flags, name, None))]

    found: dict[Kind, list[Path]] = {
        "checkpoint": [models / "Stable-diffusion", paths.root / "models" / "Stable-diffusion", *given("ckpt_dir")],
        "vae": [models / "VAE", *given("vae_dir")],
        "lora": [
            *(given("lora_dir") or [models / "Lora"]),
            *(given("lyco_dir_backcompat") or [models / "LyCORIS"]),
        ],
        "embedding": given("embeddings_dir") or [paths.data_dir / "embeddings", models / "embeddings"],
        "hypernetwork": given("hypernetwork_dir") or [models / "hypernetworks"],
        "controlnet": [models / "ControlNet", *given("controlnet_dir")],
        "text_encoder": [models / "text_encoder", *given("text_encoder_dir")],
        "unet": [models / "unet"],
    }
    own = {os.path.abspath(paths.root / "models"), os.path.abspath(models), os.path.abspath(paths.data_dir)}
    roots: dict[Kind, tuple[Root, ...]] = {kind: tuple(_labelled(folders, own)) for kind, folders in found.items()}
    roots["upscaler"] = tuple(
        Root(absolute(value) if value else models / group, absolute(value).name if value else group, group)
        for group, flag in UPSCALERS.items()
        for value in [getattr(flags, flag, None)]
    )
    return roots


def _labelled(folders: Iterable[Path], own: set[str]) -> Iterable[Root]:
    for folder in dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders):
        yield Root(folder, "" if os.path.dirname(folder) in own else folder.name)
