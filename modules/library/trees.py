"""The model folders of other programs, used where they are: A1111, Forge, ComfyUI, InvokeAI, StabilityMatrix, a Hugging
Face cache, or any folder. What a folder is, is told by what lies in it. Nothing is copied, moved or written there but
what the user writes beside a model."""

import json
import logging
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from modules.library.folders import INDEX
from modules.library.header import printable
from modules.library.kinds import KINDS, Kind
from modules.library.roots import Root, Roots, Sorted, bounded

log = logging.getLogger(__name__)

HUGGING_FACE = "huggingface"  # instead of a folder: this user's cache
EXTRA_PATHS = "extra_model_paths.yaml"
MOST_YAML = 2**20  # bytes
_Folders = Mapping[str, tuple[Kind, str]]  # folder: kind, and of upscalers the group

A1111: _Folders = {
    "models/Stable-diffusion": ("checkpoint", ""),
    "models/diffusers": ("checkpoint", ""),
    "models/VAE": ("vae", ""),
    "models/Lora": ("lora", ""),
    "models/LyCORIS": ("lora", ""),
    "embeddings": ("embedding", ""),
    "models/embeddings": ("embedding", ""),
    "models/hypernetworks": ("hypernetwork", ""),
    "models/ControlNet": ("controlnet", ""),
    "extensions/sd-webui-controlnet/models": ("controlnet", ""),
    "models/text_encoder": ("text_encoder", ""),
    "models/unet": ("unet", ""),
    **{f"models/{group}": ("upscaler", group) for group in ("ESRGAN", "RealESRGAN", "DAT", "SwinIR", "ScuNET", "LDSR")},
}
COMFYUI: _Folders = {
    "checkpoints": ("checkpoint", ""),
    "diffusers": ("checkpoint", ""),
    "vae": ("vae", ""),
    "loras": ("lora", ""),
    "embeddings": ("embedding", ""),
    "hypernetworks": ("hypernetwork", ""),
    "controlnet": ("controlnet", ""),
    "t2i_adapter": ("controlnet", ""),
    "text_encoders": ("text_encoder", ""),
    "clip": ("text_encoder", ""),
    "diffusion_models": ("unet", ""),
    "unet": ("unet", ""),
    "upscale_models": ("upscaler", "ESRGAN"),
}
STABILITY_MATRIX: _Folders = {
    "StableDiffusion": ("checkpoint", ""),
    "Diffusers": ("checkpoint", ""),
    "VAE": ("vae", ""),
    "Lora": ("lora", ""),
    "LyCORIS": ("lora", ""),
    "Embeddings": ("embedding", ""),
    "TextualInversion": ("embedding", ""),
    "Hypernetwork": ("hypernetwork", ""),
    "ControlNet": ("controlnet", ""),
    "T2IAdapter": ("controlnet", ""),
    "TextEncoders": ("text_encoder", ""),
    "CLIP": ("text_encoder", ""),
    "DiffusionModels": ("unet", ""),
    "Unet": ("unet", ""),
    **{group: ("upscaler", group) for group in ("ESRGAN", "RealESRGAN", "SwinIR")},
}
INVOKEAI: Mapping[str, Kind] = {  # its types of models
    "main": "checkpoint",
    "vae": "vae",
    "lora": "lora",
    "embedding": "embedding",
    "controlnet": "controlnet",
    "t2i_adapter": "controlnet",
    "t5_encoder": "text_encoder",
    "clip_embed": "text_encoder",
    "spandrel_image_to_image": "upscaler",
}


@dataclass(frozen=True)
class Tree:
    program: str  # for people
    label: str
    roots: Mapping[Kind, tuple[Root, ...]]
    path: Path = Path()  # what the user named

    def __str__(self) -> str:
        kinds = ", ".join(f"{len(roots)} of {kind}" for kind, roots in self.roots.items())
        return f"{self.label}: {self.program}, folders: {kinds or 'none'}"


def trees_from(named: Iterable[str], environ: Mapping[str, str], sorted_by: Sorted) -> list[Tree]:
    """`named`: folders, extra_model_paths.yaml, or "huggingface". What is not there is said in the log."""
    trees: list[Tree] = []
    for text in named:
        if text.strip().casefold() == HUGGING_FACE:
            path = hub_folder(environ)
        else:
            path = Path(os.path.abspath(Path(text).expanduser()))
        if not path.exists():
            log.warning("there is no folder %s for --model-tree; it is left out", printable(str(path)))
            continue
        for tree in trees_at(path, sorted_by):
            label = _another(tree.label, {one.label for one in trees})
            tree = replace(tree if label == tree.label else _relabelled(tree, label), path=path)
            log.info("models of %s", tree)
            trees.append(tree)
    return trees


def trees_at(path: Path, sorted_by: Sorted) -> list[Tree]:
    """What this folder is."""
    label = printable(path.name) or "models"
    if path.is_file():
        return _extra_paths(path)
    if _is(path, "models/Stable-diffusion"):
        is_forge = _is(path, "modules_forge") or _is(path, "models/text_encoder") or _is(path, "models/diffusers")
        return [Tree("Forge" if is_forge else "A1111", label, _roots(path, A1111, label))]
    if _is(path, "models/checkpoints") or (path / EXTRA_PATHS).is_file():
        found = [Tree("ComfyUI", label, _roots(path / "models", COMFYUI, label))] if _is(path, "models") else []
        extra = path / EXTRA_PATHS
        return [*found, *(_extra_paths(extra) if extra.is_file() else [])]
    if (path / "databases" / "invokeai.db").is_file() or (path / "invokeai.yaml").is_file():
        return [_invokeai(path, label, sorted_by)]
    for folder in (path / "Models", path / "Data" / "Models", path):
        if _is(folder, "StableDiffusion"):
            return [Tree("StabilityMatrix", label, _roots(folder, STABILITY_MATRIX, label))]
    if _is(path, "checkpoints") and (_is(path, "loras") or _is(path, "vae")):
        return [Tree("ComfyUI's models", label, _roots(path, COMFYUI, label))]
    if _is(path, "Stable-diffusion"):
        within = {folder.removeprefix("models/"): what for folder, what in A1111.items()}
        return [Tree("A1111's models", label, _roots(path, within, label))]
    for hub in (path, path / "hub"):
        if any(hub.glob("models--*--*/snapshots")):
            return [_hub(hub, sorted_by)]
    if (path / INDEX).is_file():
        return [_alone(path)]
    anything = Root(path, label, sorted_by=sorted_by)
    return [Tree("a folder, told apart by the files' headers", label, dict.fromkeys(KINDS, (anything,)))]


def _alone(model: Path) -> Tree:
    """A folder of diffusers."""
    label = printable(model.parent.name) or "models"
    enters = lambda folder, name: Path(folder) != model.parent or name == model.name  # noqa: E731
    root = Root(model.parent, label, enters=enters, sorted_by=lambda files: {})
    return Tree("a model of diffusers", label, {"checkpoint": (root,)})


def hub_folder(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face's own library keeps what it fetched."""
    if hub := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(hub).expanduser()
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def _roots(base: Path, folders: _Folders, label: str) -> dict[Kind, tuple[Root, ...]]:
    found: dict[Kind, list[Root]] = defaultdict(list)
    for folder, (kind, group) in folders.items():
        path = base / folder
        if path.is_dir() and path not in [root.path for root in found[kind]]:
            found[kind].append(Root(path, f"{label}/{group}" if group else label, group))
    return {kind: tuple(roots) for kind, roots in found.items() if roots}


# --- ComfyUI's extra_model_paths.yaml --------------------------------------------------------------------------------


def _extra_paths(file: Path) -> list[Tree]:
    """One tree a section; those marked is_default first."""
    try:
        if file.stat().st_size > MOST_YAML:
            raise ValueError(f"it has more than {MOST_YAML >> 20} MiB")
        content = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no sections")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        log.warning("%s cannot be read and is left out: %s", printable(str(file)), str(error)[:200])
        return []
    sections = [(str(name), section) for name, section in content.items() if isinstance(section, dict)]
    sections.sort(key=lambda pair: not _is_true(pair[1].get("is_default")))
    trees = []
    for name, section in sections:
        base = file.parent / _expanded(str(section.get("base_path") or ""))
        roots: dict[Kind, list[Root]] = defaultdict(list)
        label = printable(name)[:60]
        for key, (kind, group) in COMFYUI.items():
            for line in str(section.get(key) or "").splitlines():
                path = Path(os.path.abspath(base / _expanded(line.strip())))
                if line.strip() and path not in [root.path for root in roots[kind]]:
                    roots[kind].append(Root(path, f"{label}/{key}" if group else label, group))
        trees.append(
            Tree(f"a section of {EXTRA_PATHS}", label, {k: tuple(found) for k, found in roots.items() if found})
        )
    return trees


def _expanded(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))


def _is_true(value: object) -> bool:
    return value is True or str(value).strip().casefold() in ("true", "yes", "1")


# --- InvokeAI --------------------------------------------------------------------------------------------------------


def _invokeai(path: Path, label: str, sorted_by: Sorted) -> Tree:
    """Its models lie under models/BASE/TYPE/NAME, or under a random id each: then its database has the names."""
    models = path / "models"
    known = _installed(path / "databases" / "invokeai.db", models)
    names = {
        place.split("/")[0]: name for place, (name, _) in known.items() if "/" in place or (models / place).is_dir()
    }
    stated = {place.split("/")[0]: kind for place, (_, kind) in known.items()}
    usual = {f"{base.name}/{folder}" for base in _folders_in(models) for folder in INVOKEAI}
    if any((models / place).is_dir() for place in usual):
        names = {first: name for first, name in names.items() if first not in {place.split("/")[0] for place in usual}}

    def kinds(files: Sequence[Path]) -> Mapping[Path, str]:
        found: dict[Path, str] = {}
        for file in files:
            parts = file.relative_to(models).parts
            by_folder = INVOKEAI.get(parts[1]) if len(parts) > 2 else None
            if kind := by_folder or stated.get(parts[0]):
                found[file] = kind
        return {**sorted_by([file for file in files if file not in found]), **found}

    root = Root(models, label, group="ESRGAN", names=names, sorted_by=kinds)
    return Tree("InvokeAI", label, dict.fromkeys(KINDS, (root,)))


def _installed(database: Path, models: Path) -> dict[str, tuple[str, Kind]]:
    """Path below models/: name and kind, as its database says. Models that it uses from elsewhere are left out."""
    if not database.is_file():
        return {}
    found: dict[str, tuple[str, Kind]] = {}
    elsewhere = 0
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=2)) as rows:
            for (text,) in rows.execute("SELECT config FROM models"):
                config: Any = json.loads(text)
                name, kind = config.get("name"), INVOKEAI.get(str(config.get("type")))
                place = os.path.relpath(models / str(config.get("path")), models).replace(os.sep, "/")
                if place.startswith("../"):
                    elsewhere += 1
                elif isinstance(name, str) and kind:
                    found[place] = printable(name.replace("/", "_"))[:200], kind
    except (sqlite3.Error, ValueError, AttributeError, RecursionError) as error:
        log.warning(
            "InvokeAI's database %s cannot be read (%s); its names are not known", printable(str(database)), error
        )
        return {}
    if elsewhere:
        log.warning("%d models of InvokeAI lie outside of its folder; name their folders with --model-tree", elsewhere)
    return found


# --- Hugging Face's cache --------------------------------------------------------------------------------------------


def _hub(hub: Path, sorted_by: Sorted) -> Tree:
    """models--ORGANISATION--NAME/snapshots/REVISION/…: of each model the revision that refs/main names."""

    def enters(folder: str, name: str) -> bool:
        depth = len(Path(folder).relative_to(hub).parts)
        if depth == 0:
            return name.startswith("models--")
        if depth == 1:
            return name == "snapshots"
        return depth != 2 or name == _revision(Path(folder).parent)

    def shown(parts: Sequence[str]) -> Sequence[str]:
        repository = parts[0].removeprefix("models--").split("--", 1)
        return [*repository, *parts[3:]]

    root = Root(hub, "Hugging Face", group="ESRGAN", shown=shown, enters=enters, sorted_by=sorted_by)
    return Tree("a Hugging Face cache", "Hugging Face", dict.fromkeys(KINDS, (root,)))


def _revision(repository: Path) -> str:
    """The present one; where there is no refs/main, the newest that is there."""
    try:
        with (repository / "refs" / "main").open("rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except OSError:
        found = [(entry.stat().st_mtime_ns, entry.name) for entry in _folders_in(repository / "snapshots")]
        return max(found)[1] if found else ""


# --- all -------------------------------------------------------------------------------------------------------------


def _folders_in(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if entry.is_dir()]
    except OSError:
        return []


def _is(path: Path, folder: str) -> bool:
    return (path / folder).is_dir()


def _another(label: str, taken: set[str]) -> str:
    number, found = 2, label
    while found in taken:
        found, number = f"{label} {number}", number + 1
    return found


def _relabelled(tree: Tree, label: str) -> Tree:
    def named(root: Root) -> Root:
        return replace(root, label=label + root.label.removeprefix(tree.label))

    return replace(tree, label=label, roots={kind: tuple(map(named, roots)) for kind, roots in tree.roots.items()})


def with_trees(own: Roots, trees: Sequence[Tree], models: Path) -> dict[Kind, tuple[Root, ...]]:
    """Our own folders first. `models`: the folder that ours lie in; links may lead there, and into the trees."""
    found = {kind: list(own.get(kind, ())) for kind in KINDS}
    for tree in trees:
        for kind, roots in tree.roots.items():
            there = {root.path for root in found[kind]}
            found[kind] += [root for root in roots if root.path not in there]
    named = [tree.path for tree in trees if tree.path.is_dir()]
    return bounded({kind: tuple(roots) for kind, roots in found.items()}, [models, *named])
