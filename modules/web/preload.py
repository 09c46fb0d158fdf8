"""Which of Gradio's files a page will need, so that the browser can ask for all of them at once instead of finding them
one behind the other. Read from the dependency lists in Gradio's own entry files; where those change, the list is
just shorter."""

import re
from functools import cache
from pathlib import Path

import gradio

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
COMPONENTS = (
    "button",
    "checkbox",
    "column",
    "dropdown",
    "form",
    "number",
    "row",
    "slider",
    "statustracker",
    "tabitem",
    "tabs",
    "textbox",
)


@cache
def assets() -> tuple[str, ...]:
    found: dict[str, None] = {}
    entry = next(ASSETS.glob("index-*.js"), None)
    frame = _imported(entry, r"import\(`\./(Index-[\w-]+\.js)`\)") if entry else None
    for file in filter(None, (entry, frame, *ASSETS.glob("core-*.js"))):
        found |= dict.fromkeys(_needed(file))
    return tuple(found)


def _imported(file: Path, pattern: str) -> Path | None:
    found = re.search(pattern, file.read_text("utf-8"))
    return ASSETS / found[1] if found else None


def _needed(file: Path) -> list[str]:
    """All that the entry files themselves name, and of the components those that the page has."""
    written = file.read_text("utf-8")
    listed = re.search(r"m\.f=\[(.*?)\]", written)
    if not listed:
        return []
    names = re.findall(r'"\./([\w.-]+)"', listed[1])
    if not file.name.startswith("core-"):
        return [name for name in names if not name.startswith("Login-")]  # Gradio's own login page is not used
    needed: list[str] = []
    for component in COMPONENTS:
        found = re.search(
            rf"[{{,]{component}:{{.*?component:\(\)=>\w+\(\(\)=>import\(`\./([\w.-]+)`\).*?__vite__mapDeps\(\[([\d,]+)\]\)",
            written,
            re.S,
        )
        if found:
            needed += [names[int(index)] for index in found[2].split(",")]
    return needed
