"""Whose key opens which host: the user's settings first, else the environment. A key goes to its own hub's hosts and to
no other, and is masked in the log from its first use on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import httpx

from modules.library.downloads.find import Hubs
from modules.library.downloads.reach import authority
from modules.library.downloads.sources import CIVITAI_HOSTS
from modules.runtime import logs

Held = Literal["settings", "environment", ""]


@dataclass(frozen=True)
class Key:
    hub: str
    setting: str
    variables: tuple[str, ...]


KEYS = (
    Key("Civitai", "civitai_api_key", ("CIVITAI_API_TOKEN", "CIVITAI_API_KEY")),
    Key("Hugging Face", "huggingface_token", ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")),
)


class Tokens:
    """`setting(name)`: as it is now. A mirror of Hugging Face that the user named gets the token too, as with their own
    programs."""

    def __init__(self, setting: Callable[[str], str], environ: Mapping[str, str], hubs: Hubs):
        self._setting, self._environ = setting, environ
        self._keys = dict.fromkeys([*CIVITAI_HOSTS, *_host(hubs.civitai)], KEYS[0])
        self._keys |= dict.fromkeys(["huggingface.co", "www.huggingface.co", *_host(hubs.huggingface)], KEYS[1])

    def __call__(self, host: str) -> str | None:
        key = self._keys.get(host)
        found = self._value(key)[0] if key else ""
        if found:
            logs.hide(found)
        return found or None

    def held(self) -> dict[str, Held]:
        """Where each hub's key is, never what it is."""
        return {key.hub: self._value(key)[1] for key in KEYS}

    def _value(self, key: Key) -> tuple[str, Held]:
        if value := self._setting(key.setting):
            return value, "settings"
        for name in key.variables:
            value = self._environ.get(name, "").strip()
            if re.fullmatch(r"[\x21-\x7e]{1,512}", value):
                return value, "environment"
        return "", ""


def _host(base: str) -> list[str]:
    return [authority(httpx.URL(base))] if base else []
