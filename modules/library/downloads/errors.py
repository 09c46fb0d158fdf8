"""What can go wrong with a download, as sentences for the user. They never hold a token, or an address's secrets."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

SECRET_NAMES = re.compile(r"(?i)token|key|secret|sig|auth|credential|password|policy|session")


class DownloadError(Exception):
    """`again`: another try may help, without the user. `asks_for`: whose token is missing or refused."""

    def __init__(self, sentence: str, *, again: bool = False, wait_s: float = 0.0, asks_for: str = "", status: int = 0):
        super().__init__(sentence)
        self.sentence, self.again, self.wait_s, self.asks_for = sentence, again, wait_s, asks_for
        self.status = status  # HTTP's, where the other side gave one


class WrongContent(DownloadError):
    """All bytes came, and they are not the file: going on with them would help nobody."""


class Stopped(Exception):
    """The user paused or cancelled it, or the server ends."""


def without_secrets(address: str) -> str:
    """The address without what opens it: values of parameters that look like keys, and a name with a password."""
    try:
        parts = urlsplit(address)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return address.partition("?")[0]
    kept = [(name, value) for name, value in pairs if not SECRET_NAMES.search(name)]
    host = parts.netloc.rpartition("@")[2]
    if len(kept) == len(pairs) and host == parts.netloc:
        return address
    return urlunsplit((parts.scheme, host, parts.path, urlencode(kept), ""))


def has_secrets(address: str) -> bool:
    return without_secrets(address) != address
