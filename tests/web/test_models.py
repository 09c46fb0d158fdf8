"""The page speaks the words that the server says of a model, of a download and of the checkpoint in use."""

import ast
import re
from pathlib import Path

from modules.jobs import queue
from modules.library import checkpoints, downloads
from modules.server import downloads as routes
from modules.web.text import texts


def sentences(file: Path) -> set[str]:
    """Every text of a source file, with {} in the place of what is filled in."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            found.add("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(re.sub(r"\{\w+\}", "{}", node.value))
    return found


def test_what_is_translated_is_really_said() -> None:
    """A sentence that changes there would stay English here."""
    files = [
        *Path(downloads.__path__[0]).glob("*.py"),
        *(Path(str(one.__file__)) for one in (routes, checkpoints, queue)),
    ]
    said = set().union(*map(sentences, files))
    known = {id: re.sub(r"\{\w+\}", "{}", words) for id, words in texts("en").items() if id.startswith("said.")}
    assert len(known) > 40
    # These two are put together from parts.
    apart = {"said.virus": "Civitai's own scan found {}", "said.code": "Civitai's own scan found {}"}
    assert {id for id, words in (known | apart).items() if words not in said} == set()
