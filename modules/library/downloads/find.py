"""From a text to what can be fetched: asks the hub that it means."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from modules.library.downloads import civitai, huggingface
from modules.library.downloads.errors import without_secrets
from modules.library.downloads.fetch import RemoteFile, host_in
from modules.library.downloads.peek import peek
from modules.library.downloads.reach import Reach
from modules.library.downloads.sources import Choice, CivitaiModel, Found, HubModel, meaning_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hubs:
    """Where the hubs are, if not at their own addresses: a mirror of Hugging Face, or servers of a test."""

    civitai: str = ""
    huggingface: str = ""


def hubs_from(environ: Mapping[str, str]) -> Hubs:
    """HF_ENDPOINT names a mirror, as everywhere; anything but https is no mirror of ours."""
    endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if endpoint and not endpoint.startswith("https://"):
        log.warning("HF_ENDPOINT is not used for downloads: a mirror of Hugging Face must be https")
        endpoint = ""
    return Hubs(huggingface=endpoint)


def find(reach: Reach, text: str, hubs: Hubs, file: str | None = None) -> Found:
    """`file`: the choice that is meant, by id or name. Raises DownloadError."""
    match meaning_of(text):
        case CivitaiModel() as model:
            found = civitai.find(reach, model, hubs.civitai)
        case HubModel() as repository:
            return huggingface.find(reach, repository, hubs.huggingface, file)
        case link:
            return _linked(reach, link.address)
    return found if file is None else _choosing(found, file)


def _choosing(found: Found, file: str) -> Found:
    return replace(found, chosen=found.choice(file).id)


def _linked(reach: Reach, address: str) -> Found:
    seen = peek(reach, RemoteFile(address, ""))
    choice = Choice(seen.file.name, "", (seen.file,))
    return Found(
        what=without_secrets(address),
        source=host_in(address),
        title=seen.file.name,
        choices=(choice,),
        chosen=choice.id,
        kind=seen.kind,
        family=seen.family,
        notes=(seen.note,) if seen.note else (),
    )
