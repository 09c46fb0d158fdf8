"""What a repository of Hugging Face holds: single files, and models in diffusers' layout, one choice a variant."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from modules.library.downloads.ask import ask_json
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import RemoteFile
from modules.library.downloads.naming import PICKLED, is_model, safe_name, safe_relative, suffix_of
from modules.library.downloads.peek import peek
from modules.library.downloads.reach import Reach
from modules.library.downloads.sources import Choice, Found, HubModel

ENDPOINT = "https://huggingface.co"
INDEX = "model_index.json"
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # nothing here needs them
MOST_FILES = 300
GATED = "its terms have to be accepted on its page first, and your key be in the settings"
_WEIGHTS = re.compile(
    r"(?P<stem>(diffusion_pytorch_)?(pytorch_)?model)(\.(?P<before>[a-z]\w*))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(\.(?P<after>[a-z]\w*))?\.(?P<suffix>safetensors|bin)"
)
_WEIGHT_INDEX = re.compile(r"[\w.]+\.(?P<suffix>safetensors|bin)\.index(\.(?P<variant>[a-z]\w*))?\.json")
_OTHERS = re.compile(r"(?i).*\.(json|txt|model)")
_KINDS_BY_TAG = (
    ("lora", "lora"),
    ("textual_inversion", "embedding"),
    ("textual-inversion", "embedding"),
    ("controlnet", "controlnet"),
)


def find(reach: Reach, wanted: HubModel, endpoint: str = "", file: str | None = None) -> Found:
    """`file`: the choice whose header is looked at; else the likeliest one's. Raises DownloadError."""
    endpoint = (endpoint or ENDPOINT).rstrip("/")
    at = f"{endpoint}/api/models/{wanted.repository}/revision/{quote(wanted.revision, safe='')}?blobs=true"
    about = ask_json(reach, at, "Hugging Face")
    files = list(_files(about, endpoint, wanted))
    choices = _choices(files, wanted)
    if wanted.path:
        choices = tuple(c for c in choices if c.id == wanted.path) or _below(choices, wanted.path)
    if not choices:
        where = f"{wanted.repository}/{wanted.path}" if wanted.path else wanted.repository
        raise DownloadError(f"there is no model file in {where}; its page may tell what it is")
    found = _found(about, wanted, choices)
    return looked_at(reach, found, file)


def looked_at(reach: Reach, found: Found, id: str | None) -> Found:
    """With what the header of one choice tells."""
    choice = found.choice(id)
    if choice.folder or not is_model(choice.files[0].name):
        return replace(found, chosen=choice.id)
    seen = peek(reach, choice.files[0])
    notes = (*found.notes, f"{choice.name}: {seen.note}") if seen.note else found.notes
    choices = tuple(replace(c, files=(seen.file,)) if c is choice else c for c in found.choices)
    return replace(
        found, choices=choices, kind=seen.kind or found.kind, family=seen.family, notes=notes, chosen=choice.id
    )


def _files(about: dict[str, Any], endpoint: str, wanted: HubModel) -> Iterable[tuple[str, RemoteFile]]:
    """(path, file) of what could be wanted; pinned to the commit that was seen, so that a later start gets the same."""
    sha = about.get("sha")
    revision = sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40}", sha) else wanted.revision
    siblings = about.get("siblings")
    for entry in siblings if isinstance(siblings, list) else []:
        path = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(path, str) or len(path) > 500:
            continue
        large = entry.get("lfs") if isinstance(entry.get("lfs"), dict) else {}
        digest, size = large.get("sha256"), large.get("size", entry.get("size"))
        yield (
            path,
            RemoteFile(
                url=f"{endpoint}/{wanted.repository}/resolve/{quote(revision, safe='')}/{quote(path)}",
                name=safe_name(path),
                size=size if isinstance(size, int) and size >= 0 else None,
                sha256=digest if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) else None,
            ),
        )


def _choices(files: list[tuple[str, RemoteFile]], wanted: HubModel) -> tuple[Choice, ...]:
    by_path = dict(files)
    folders = list(_diffusers(by_path, wanted)) if INDEX in by_path else []
    taken = {path.rpartition("/")[0] for path in by_path if "/" in path} if folders else set()

    def is_a_part(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return folder in taken and bool(_WEIGHTS.fullmatch(name))

    models = [(path, file) for path, file in files if is_model(path) and file.name and not is_a_part(path)]
    singles = [Choice(path, _label(path), (file,)) for path, file in models]
    singles.sort(key=lambda c: (c.id.count("/"), suffix_of(c.id) != ".safetensors", c.id))
    return (*singles[:MOST_FILES], *folders) if singles and _is_whole(singles[0]) else (*folders, *singles[:MOST_FILES])


def _is_whole(choice: Choice) -> bool:
    """A file large enough to be a checkpoint, in the root of a repository that is also a folder of parts."""
    return "/" not in choice.id and suffix_of(choice.id) == ".safetensors" and (choice.size or 0) > 1.5e9


def _below(choices: tuple[Choice, ...], path: str) -> tuple[Choice, ...]:
    return tuple(c for c in choices if c.id.startswith(f"{path.rstrip('/')}/"))


def _diffusers(by_path: Mapping[str, RemoteFile], wanted: HubModel) -> Iterable[Choice]:
    """Each variant (fp16, none) with all the files that it needs."""
    parts: dict[str, list[str]] = {}
    for path in by_path:
        folder, slash, name = path.partition("/")
        if slash and "/" not in name and folder not in LEFT_OUT and safe_relative(path):
            parts.setdefault(folder, []).append(name)
    weights = {part: found for part, names in parts.items() if (found := _variants(names))}
    if not {"unet", "transformer"} & set(weights):
        return
    variants = dict.fromkeys(variant for found in weights.values() for variant, _ in found)
    main = "unet" if "unet" in weights else "transformer"
    for variant in sorted(variants, key=lambda v: (v not in ("fp16", ""), v != "fp16", v)):
        if variant not in {v for v, _ in weights[main]}:
            continue
        chosen = [INDEX]
        for part, names in parts.items():
            found = weights.get(part, {})
            key = next((k for v in (variant, "") for s in ("safetensors", "bin") if (k := (v, s)) in found), None)
            own = found.get(key, ()) if key else ()
            others = [n for n in names if _OTHERS.fullmatch(n) and not _WEIGHT_INDEX.fullmatch(n)]
            if found and not own:
                break
            chosen += [f"{part}/{name}" for name in (*own, *others)]
        else:
            files = tuple(replace(by_path[path], name=path) for path in chosen)
            label = f"diffusers, {variant}" if variant else "diffusers"
            folder = safe_name(wanted.repository.rpartition("/")[2] + (f"-{variant}" if variant else ""))
            yield Choice(f"diffusers:{variant}", label, files, folder=folder, kind="checkpoint")


def _variants(names: list[str]) -> dict[tuple[str, str], list[str]]:
    """(variant, suffix): the files with the weights, shards with their index."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name) or _WEIGHT_INDEX.fullmatch(name)
        if match is None:
            continue
        groups = match.groupdict()
        variant = groups.get("before") or groups.get("after") or groups.get("variant") or ""
        found.setdefault((variant, groups["suffix"]), []).append(name)
    return {key: files for key, files in found.items() if any(_WEIGHTS.fullmatch(name) for name in files)}


def _found(about: dict[str, Any], wanted: HubModel, choices: tuple[Choice, ...]) -> Found:
    stated = about.get("cardData")
    card: dict[str, Any] = stated if isinstance(stated, dict) else {}
    tags = [tag.lower() for tag in about.get("tags") or [] if isinstance(tag, str)]
    base = card.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    licence = card.get("license_name") or card.get("license")
    words = card.get("instance_prompt")
    gated = about.get("gated")
    return Found(
        what=str(wanted),
        source="Hugging Face",
        title=wanted.repository,
        choices=choices,
        chosen=choices[0].id,
        kind=next((kind for tag, kind in _KINDS_BY_TAG if tag in tags), ""),
        version=wanted.revision,
        base_model=base[:200] if isinstance(base, str) else "",
        words=(words.strip()[:500],) if isinstance(words, str) and words.strip() else (),
        page=f"{ENDPOINT}/{wanted.repository}",
        licence=(f"licence: {licence[:100]}",) if isinstance(licence, str) else (),
        notes=(GATED,) if gated else (),
    )


def _label(path: str) -> str:
    folder = path.rpartition("/")[0]
    return " · ".join(filter(None, (folder, "PyTorch" if suffix_of(path) in PICKLED else suffix_of(path)[1:])))
