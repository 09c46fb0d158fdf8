"""The log: one line a record, whatever is in it. Control characters are escaped, secrets masked, tracebacks indented.

A name, a prompt or an error text may come from a stranger: it can neither begin a line of its own nor move a
terminal's cursor.
"""

import logging
import re
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TextIO

MASK = "…masked…"

# What looks like a secret wherever it turns up: tokens in addresses, headers, Hugging Face's and Civitai's keys.
_SECRETS = [
    re.compile(r"(?i)([?&](?:token|key|access_token|api_key|auth)=)[^\s&#\"']+"),
    re.compile(r"(?i)((?:authorization|cookie|x-api-key)[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"',]+"),
    re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]+"),
    re.compile(r"()\bhf_[A-Za-z0-9]{8,}"),
]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def set_up(level: str | int = "INFO", stream: TextIO | None = None, secrets: Iterable[str] = ()) -> "Recent":
    """Sends everything that is logged in this process to `stream` (else stderr); `secrets` are masked by value. Returns
    what keeps the last warnings and errors."""
    handler, recent = logging.StreamHandler(stream or sys.stderr), Recent()
    formatter = OneLineFormatter(secrets)
    handler.setFormatter(formatter)
    recent.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler, recent]
    root.setLevel(level)
    logging.captureWarnings(True)
    # These report every request and file on INFO.
    for chatty in ("httpx", "httpcore", "asyncio", "multipart", "PIL", "urllib3", "filelock", "fsspec"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    return recent


class Recent(logging.Handler):
    """The last warnings and errors, as they stand in the log."""

    def __init__(self, most: int = 20) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[str] = deque(maxlen=most)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(self.format(record))

    def problems(self) -> list[str]:
        """The oldest first."""
        with self.lock or nullcontext():
            return list(self._kept)


def hide(secret: str) -> None:
    """From now on, in every line of this process's log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, OneLineFormatter):
            handler.formatter.hide(secret)


class OneLineFormatter(logging.Formatter):
    """`12:30:05 WARNING modules.jobs.worker: text`; a traceback follows, each line indented."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self._secrets = [secret for secret in secrets if secret]

    def hide(self, secret: str) -> None:
        if secret and secret not in self._secrets:
            self._secrets.append(secret)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape(self._masked(super().formatMessage(record)))

    def formatException(self, ei: object) -> str:
        return self._indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        return self._indented(super().formatStack(stack_info))

    def _indented(self, text: str) -> str:
        return "\n".join("    " + escape(self._masked(line)) for line in text.split("\n"))

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return masked(text)


def masked(text: str) -> str:
    """The text without what looks like a token, key or cookie."""
    for secret in _SECRETS:
        text = secret.sub(rf"\1{MASK}", text)
    return text


def escape(text: str) -> str:
    """Control characters as `\\n`, `\\x1b`, `\\u202e`: one line stays one line."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
