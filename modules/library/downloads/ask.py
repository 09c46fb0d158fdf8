"""Questions to the interfaces of model hubs: JSON in, refusals as sentences."""

import json
import time
from typing import Any

from modules.library.downloads.errors import DownloadError
from modules.library.downloads.fetch import status_error
from modules.library.downloads.reach import MOST_TEXT, Reach


def ask_json(reach: Reach, address: str, who: str, token: str | None = None) -> dict[str, Any]:
    """Asks twice where the first time brought nothing. Raises DownloadError."""
    try:
        return _ask(reach, address, who, token)
    except DownloadError as error:
        if not error.again or error.wait_s > reach.patience.first_wait_s * 5:
            raise
        time.sleep(max(error.wait_s, reach.patience.first_wait_s))
    return _ask(reach, address, who, token)


def _ask(reach: Reach, address: str, who: str, token: str | None) -> dict[str, Any]:
    with reach.get(address, {"Accept": "application/json"}, token) as answer:
        if answer.status != 200:
            error = status_error(answer.status, answer.headers, answer.url)
            if answer.status == 404:
                raise DownloadError(f"{who} has no such model, or shows it only with a key", status=404)
            raise error
        data = answer.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise DownloadError(f"{who} answers with more than {MOST_TEXT >> 20} MiB, which no description of a model has")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise DownloadError(f"{who} answers with something else than a description of a model", again=True) from None
    if not isinstance(found, dict):
        raise DownloadError(f"{who} answers with something else than a description of a model")
    return found
