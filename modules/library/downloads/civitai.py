"""What Civitai says of a model: its versions, their files with hashes, trigger words, and what its author allows."""

import html
import re
from collections.abc import Mapping
from typing import Any

from modules.library.downloads.ask import ask_json
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import RemoteFile, host_in
from modules.library.downloads.naming import is_model, safe_name
from modules.library.downloads.reach import Reach
from modules.library.downloads.sources import Choice, CivitaiModel, Found

KINDS: Mapping[str, str] = {
    "checkpoint": "checkpoint",
    "lora": "lora",
    "locon": "lora",
    "dora": "lora",
    "textualinversion": "embedding",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscaler",
    "hypernetwork": "hypernetwork",
}
OF_FILES: Mapping[str, str] = {"vae": "vae", "text encoder": "text_encoder"}
SAFE_FOR_ALL = 2  # Civitai's levels: 1 is PG, 2 is PG-13, more is not for every screen
MOST_FILES = 100
MOST_DESCRIPTION = 2000  # characters


def find(reach: Reach, wanted: CivitaiModel, base: str = "") -> Found:
    """Raises DownloadError."""
    base = base or f"https://{wanted.host}"
    version = _version(reach, base, wanted)
    model_id = wanted.model or version.get("modelId")
    model = ask_json(reach, f"{base}/api/v1/models/{int(model_id)}", "Civitai", wanted.token) if model_id else {}
    versions = [one for one in _list(model.get("modelVersions")) if isinstance(one.get("id"), int)]
    if not version:
        version = next((one for one in versions if not wanted.version or one["id"] == wanted.version), {})
    if not version:
        raise DownloadError("Civitai shows no version of this model: it may be private, or for those with a key only")
    about = _dict(version.get("model")) | {key: model[key] for key in ("name", "type") if key in model}
    choices = _choices(base, version, wanted)
    return Found(
        what=f"civitai:{model_id or ''}@{version['id']}",
        source="Civitai",
        title=_text(about.get("name")) or "a model of Civitai",
        choices=choices,
        chosen=_chosen(choices, version, wanted),
        kind=KINDS.get(_text(about.get("type")).lower(), ""),
        version=_text(version.get("name")),
        versions=tuple((f"civitai:{model_id}@{one['id']}", _text(one.get("name"))) for one in versions[:MOST_FILES]),
        base_model=_text(version.get("baseModel")),
        words=_words(version.get("trainedWords")),
        page=f"https://{wanted.host}/models/{model_id}?modelVersionId={version['id']}" if model_id else "",
        preview=_preview(version),
        licence=licence_of(model) if model else (),
        notes=_notes(about, version),
        description=plain(version.get("description")) or plain(model.get("description")),
        info=_info(version, model, about),
    )


def _version(reach: Reach, base: str, wanted: CivitaiModel) -> dict[str, Any]:
    if wanted.version is None:
        return {}
    found = ask_json(reach, f"{base}/api/v1/model-versions/{wanted.version}", "Civitai", wanted.token)
    if not isinstance(found.get("id"), int):
        raise DownloadError(f"Civitai says nothing of the version {wanted.version}")
    return found


def _choices(base: str, version: dict[str, Any], wanted: CivitaiModel) -> tuple[Choice, ...]:
    found = []
    for number, file in enumerate(_list(version.get("files"))[:MOST_FILES]):
        name = safe_name(_text(file.get("name")))
        if not is_model(name) or _text(file.get("type")).lower() in ("training data", "config", "archive"):
            continue
        address = _text(file.get("downloadUrl")) or f"{base}/api/download/models/{version['id']}"
        hashes = {key.lower(): value for key, value in _dict(file.get("hashes")).items()}
        digest = _text(hashes.get("sha256")).lower()
        remote = RemoteFile(
            url=address,
            name=name,
            size=_bytes(file.get("sizeKB")),
            sha256=digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None,
            token=wanted.token if host_in(address) == host_in(base) else None,
        )
        kind = OF_FILES.get(_text(file.get("type")).lower(), "")
        found.append(Choice(str(file.get("id") or number), _label(file), (remote,), kind=kind, refused=_refused(file)))
    if not found:
        raise DownloadError("there is no model file in this version; Civitai may have others of it on its page")
    return tuple(found)


def _bytes(kilobytes: object) -> int | None:
    """Civitai counts in fractions of KiB that make whole bytes; where they do not, the number was rounded."""
    if not isinstance(kilobytes, int | float) or not 0 < kilobytes < 2**40:
        return None
    exact = kilobytes * 1024
    return round(exact) if abs(exact - round(exact)) < 0.01 else None


def _label(file: dict[str, Any]) -> str:
    about = _dict(file.get("metadata"))
    words = [_text(file.get("type")), _text(about.get("size")), _text(about.get("fp")), _text(about.get("format"))]
    return " · ".join(word for word in words if word)


def _refused(file: dict[str, Any]) -> str:
    for scan, what in (("virusScanResult", "a virus"), ("pickleScanResult", "code in it")):
        if _text(file.get(scan)).lower() == "danger":
            return f"Civitai's own scan found {what}"
    return ""


def _chosen(choices: tuple[Choice, ...], version: dict[str, Any], wanted: CivitaiModel) -> str:
    files = {str(file.get("id") or number): file for number, file in enumerate(_list(version.get("files")))}

    def score(choice: Choice) -> tuple[bool, ...]:
        file = files.get(choice.id, {})
        about = {key.lower(): _text(value).lower() for key, value in _dict(file.get("metadata")).items()}
        about["type"] = _text(file.get("type")).lower()
        return (
            choice.id == str(wanted.file),
            all(about.get(key, "") == value.lower() for key, value in wanted.wanted) if wanted.wanted else True,
            not choice.refused,
            not choice.is_pickled,
            not choice.kind,
            bool(file.get("primary")),
        )

    return max(choices, key=score).id


def _preview(version: dict[str, Any]) -> str:
    """The first picture that may be shown on any screen."""
    for image in _list(version.get("images")):
        level = image.get("nsfwLevel")
        if image.get("type", "image") == "image" and isinstance(level, int) and level <= SAFE_FOR_ALL:
            return _text(image.get("url"))
    return ""


def _notes(about: dict[str, Any], version: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    kind = _text(about.get("type"))
    if kind.lower() not in KINDS:
        notes.append(f"Civitai calls it a {kind or 'thing without a type'}: say what kind of model it is")
    if _text(version.get("availability")).lower() == "earlyaccess":
        notes.append("early access: Civitai gives it only to those who bought it, by their key")
    if _text(version.get("usageControl")) not in ("", "Download"):
        notes.append("its author lets nobody download it")
    return tuple(notes)


def licence_of(model: dict[str, Any]) -> tuple[str, ...]:
    """What its author does not allow, in sentences; what is allowed needs none."""
    uses = model.get("allowCommercialUse")
    uses = uses if isinstance(uses, list) else re.findall(r"\w+", _text(uses))
    said = []
    if model.get("allowNoCredit") is False:
        said.append("name its author wherever you show it")
    if not {str(use).lower() for use in uses} - {"none"}:
        said.append("no commercial use")
    elif not {str(use).lower() for use in uses} & {"image"}:
        said.append("pictures made with it are not to be sold")
    if model.get("allowDerivatives") is False:
        said.append("do not share merges of it")
    elif model.get("allowDifferentLicense") is False:
        said.append("merges of it keep these terms")
    return tuple(said)


def plain(text: object) -> str:
    """Text without markup: foreign text is text."""
    if not isinstance(text, str):
        return ""
    text = re.sub(r"(?i)<(br|/p|/li|/h\d)[^<>]{0,200}>", "\n", text[: 4 * MOST_DESCRIPTION])
    text = html.unescape(re.sub(r"<[^<>]{0,1000}>", "", text))
    return re.sub(r"\n\s*\n+", "\n", text).strip()[:MOST_DESCRIPTION]


def _words(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else []
    return tuple(word.strip()[:500] for word in words[:100] if isinstance(word, str) and word.strip())


def _info(version: dict[str, Any], model: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What A1111's users know as .civitai.info: the version, with a few words of its model."""
    described = {**about, "description": model.get("description"), "tags": model.get("tags")}
    return {**version, "modelId": version.get("modelId") or model.get("id"), "model": described}


def _text(value: object) -> str:
    return value.strip()[:1000] if isinstance(value, str) else ""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
