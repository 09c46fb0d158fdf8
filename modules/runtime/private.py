"""Text without what is nobody's business: folders, the user's and the machine's name, secrets. For reports that people
paste into public places. Knows nothing of where the text comes from."""

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from modules.runtime.logs import MASK, masked

HIDDEN = "…"
SECRET_NAME = re.compile(r"(?i)token|key|secret|pass|auth|credential|cookie")
LEAST_SECRET = 6  # characters; a shorter value would be found in ordinary words
LEAST_NAME = 3
CODE = ("modules", "tests", "bench", "tools", "venv", "launch.py", "webui.py")  # folders and files of the program
NO_NAMES = ("root", "home", "user", "users", "localhost")  # they say nothing of who it is

# A path ends at a quote, a comma and the like; its folders may have spaces in their names, so that rather too much is
# hidden than too little. What follows the last slash stays where it is a file's name with an ending.
_IN = r"[^/\\'\":,;<>()\[\]\n]+"
_LAST = r"([^\s/\\'\":,;<>()\[\]]*)"
_POSIX = re.compile(rf"(?:\bfile://|(?<![\w/.<>~…-]))/(?=[^\s/])(?:{_IN}/)*{_LAST}")
_WINDOWS = re.compile(rf"(?:(?<![A-Za-z])[A-Za-z]:[\\/]|\\\\)[\\/]*(?:{_IN}[\\/]+)*{_LAST}")
_BELOW = re.compile(rf"(<(?:data|models|home|temp|here|easel)>)[\\/]+(?!{'|'.join(CODE)})((?:{_IN}[\\/]+)*){_LAST}")
_FILE = re.compile(r"[\w.-]+\.\w{1,12}")


class Scrubber:
    """`folders`: what to write in place of each. `secrets`: values that are hidden wherever they turn up."""

    def __init__(
        self, folders: Mapping[Path, str], secrets: Iterable[str] = (), environ: Mapping[str, str] = os.environ
    ):
        known: dict[str, str] = {}
        for folder, name in {**_places(), **folders}.items():
            for spelling in {folder, Path(os.path.realpath(folder))}:
                if len(spelling.parts) > 1:  # "/" is in everything
                    known |= dict.fromkeys(_spelt(spelling), name)
        hidden = {value for name, value in environ.items() if SECRET_NAME.search(name)} | set(secrets)
        longest_first = sorted(known.items(), key=lambda pair: -len(pair[0]))
        self._folders = [(re.compile(rf"{re.escape(folder)}(?![\w-])"), name) for folder, name in longest_first]
        self._secrets = sorted((value for value in hidden if len(value) >= LEAST_SECRET), key=len, reverse=True)
        names = {name for name in _names() if len(name) >= LEAST_NAME and name.lower() not in NO_NAMES}
        self._names = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)) if names else None

    def __call__(self, text: str) -> str:
        for pattern, name in self._folders:
            text = pattern.sub(name, text)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = masked(text)
        text = _BELOW.sub(_below, text)
        text = _WINDOWS.sub(_file_only, text)
        text = _POSIX.sub(_file_only, text)
        return self._names.sub(HIDDEN, text) if self._names else text


def _file_only(found: "re.Match[str]") -> str:
    return f"{HIDDEN}/{found[1]}" if _FILE.fullmatch(found[1]) else HIDDEN


def _below(found: "re.Match[str]") -> str:
    file = found[3] if _FILE.fullmatch(found[3]) else ""
    between = f"/{HIDDEN}" if found[2] or not file else ""
    return f"{found[1]}{between}" + (f"/{file}" if file else "")


def _places() -> dict[Path, str]:
    return {
        Path.home(): "<home>",
        Path(sys.prefix): "<python>",
        Path(sys.base_prefix): "<python>",
        Path(tempfile.gettempdir()): "<temp>",
        Path.cwd(): "<here>",
    }


def _spelt(folder: Path) -> set[str]:
    """As it stands in messages; repr doubles backslashes."""
    text = str(folder)
    return {text, text.replace("\\", "\\\\"), folder.as_posix()}


def _names() -> set[str]:
    """Of the user and of this machine."""
    found = {Path.home().name, socket.gethostname(), socket.gethostname().split(".")[0]}
    try:
        found.add(getpass.getuser())
    except (KeyError, OSError, ImportError):  # a user without an entry, as containers have them
        pass
    return found
