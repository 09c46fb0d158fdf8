"""What a text means that the user pasted: a model of Civitai, a repository of Hugging Face, or any https link; and what
is found there, in one shape. Fetches nothing."""

import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import RemoteFile
from modules.library.downloads.naming import PICKLED, suffix_of

MOST_TEXT = 4096  # characters of what may be asked for
CIVITAI_HOSTS = ("civitai.com", "www.civitai.com", "civitai.red", "www.civitai.red", "civitai.green")
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
HINT = (
    "paste the address of a model's page, an AIR (urn:air:…), civitai:4384@128713, hf:owner/name, or an https link to "
    "a file"
)
_ID = r"[0-9]{1,12}"
_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"


@dataclass(frozen=True)
class CivitaiModel:
    model: int | None
    version: int | None
    host: str = "civitai.com"
    file: int | None = None  # of the version
    token: str | None = None  # as it stood in the link
    wanted: tuple[tuple[str, str], ...] = ()  # type, format, size, fp of a download link

    def __str__(self) -> str:
        version = f"@{self.version}" if self.version else ""
        return f"civitai:{self.model or ''}{version}"


@dataclass(frozen=True)
class HubModel:
    repository: str
    revision: str = "main"
    path: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision != "main" else ""
        return f"hf:{self.repository}{f'/{self.path}' if self.path else ''}{at}"


@dataclass(frozen=True)
class Link:
    address: str


@dataclass(frozen=True)
class Choice:
    """One file, or the files of one folder, that can be had."""

    id: str
    label: str
    files: tuple[RemoteFile, ...]
    folder: str = ""  # of many files; "" where it is one
    kind: str = ""  # where it differs from what was found
    refused: str = ""  # why it is never fetched

    @property
    def name(self) -> str:
        return self.folder or self.files[0].name

    @property
    def size(self) -> int | None:
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def is_pickled(self) -> bool:
        return any(suffix_of(file.name) in PICKLED for file in self.files)


@dataclass(frozen=True)
class Found:
    what: str  # asks for the same again; holds no secret
    source: str  # Civitai, Hugging Face, or the host of a link
    title: str
    choices: tuple[Choice, ...]
    chosen: str  # the id of the choice that most want
    kind: str = ""  # of modules/library/facts.py; "" where nothing tells
    version: str = ""
    versions: tuple[tuple[str, str], ...] = ()  # (what, name) of all of them
    base_model: str = ""
    family: str = ""  # by its header
    words: tuple[str, ...] = ()  # that trigger it
    page: str = ""
    preview: str = ""  # its address
    licence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    description: str = ""
    info: dict[str, Any] | None = field(default=None, repr=False)  # what Civitai says of the version, for the sidecar

    def choice(self, id: str | None) -> Choice:
        """By id, or by the name of its file. Raises DownloadError."""
        wanted = id or self.chosen
        for choice in self.choices:
            if wanted in (choice.id, choice.name):
                return choice
        raise DownloadError(
            f"there is no file {wanted[:80]!r} in it; there are {', '.join(c.name for c in self.choices[:10])}"
        )

    def of_kind(self, kind: str) -> "Found":
        return replace(self, kind=kind)


def meaning_of(text: str) -> CivitaiModel | HubModel | Link:
    """Raises DownloadError for what means nothing."""
    text = text.strip().strip("'\"<>").strip()
    if not text:
        raise DownloadError(f"nothing was asked for; {HINT}")
    if len(text) > MOST_TEXT:
        raise DownloadError("that is too long for a link")
    if found := re.fullmatch(rf"(?i)(?:urn:)?air:[\w.-]+:[\w.-]+:civitai:({_ID})(?:@({_ID}))?(?:[:.?].*)?", text):
        return CivitaiModel(int(found[1]), int(found[2]) if found[2] else None)
    if found := re.fullmatch(rf"(?i)civitai:({_ID})?(?:@({_ID}))?", text):
        if found[1] or found[2]:
            return CivitaiModel(int(found[1]) if found[1] else None, int(found[2]) if found[2] else None)
    if found := re.fullmatch(
        rf"(?i)(?:urn:)?air:[\w.-]+:[\w.-]+:huggingface:({_REPO})(?:@([\w./-]+?))?(?:[:?].*)?", text
    ):
        return HubModel(found[1], found[2] or "main")
    if found := re.fullmatch(
        rf"(?:(?:hf|huggingface)://?|(?:hf|huggingface):)?({_REPO})((?:/[^@?#]+)?)(?:@([\w./-]+))?", text
    ):
        if text.partition("/")[0].lower() not in (*CIVITAI_HOSTS, *HUB_HOSTS):
            return HubModel(found[1], found[3] or "main", found[2].strip("/"))
    if re.match(r"(?i)(www\.)?(civitai\.\w+|huggingface\.co|hf\.co)/", text):
        text = f"https://{text}"
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://", text):
        return _address(text)
    raise DownloadError(f"{text[:80]!r} is nothing that can be fetched; {HINT}")


def _address(text: str) -> CivitaiModel | HubModel | Link:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").lower()
    except ValueError:
        raise DownloadError("the link cannot be read; it must look like https://host/path") from None
    if host in CIVITAI_HOSTS:
        return _of_civitai(host, parts.path, parse_qs(parts.query)) or Link(text)
    if host in HUB_HOSTS:
        return _of_hub(unquote(parts.path)) or Link(text)
    return Link(text)


def _of_civitai(host: str, path: str, query: dict[str, list[str]]) -> CivitaiModel | None:
    token = query.get("token", [None])[0]
    if found := re.match(rf"/api/download/models/({_ID})/?$", path):
        wanted = tuple((key, query[key][0]) for key in ("type", "format", "size", "fp") if query.get(key))
        file = query.get("fileId", [""])[0]
        return CivitaiModel(
            None, int(found[1]), host, int(file) if re.fullmatch(_ID, file) else None, token, wanted
        )  # fmt: skip
    if found := re.match(rf"(?:/\w\w)?/models/({_ID})(?:/|$)", path):
        version = query.get("modelVersionId", [""])[0]
        return CivitaiModel(int(found[1]), int(version) if re.fullmatch(_ID, version) else None, host, token=token)
    if found := re.match(rf"(?:/api/v1)?/(models|model-versions)/({_ID})/?$", path):
        number = int(found[2])
        return CivitaiModel(number, None, host) if found[1] == "models" else CivitaiModel(None, number, host)
    return None


def _of_hub(path: str) -> HubModel | None:
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or parts[0] in ("datasets", "spaces", "api", "docs", "models", "collections", "papers"):
        return None
    repository, rest = "/".join(parts[:2]), parts[2:]
    if not re.fullmatch(_REPO, repository):
        return None
    if rest and rest[0] in ("tree", "blob", "resolve", "raw") and len(rest) > 1:
        return HubModel(repository, rest[1], "/".join(rest[2:]))
    return HubModel(repository)
