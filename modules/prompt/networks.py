"""Extra networks in a prompt: `<lora:name:0.8>`, `<hypernet:name:1>`, `<lora:name:te=0.5:unet=0.2>`. Takes the tags out
of the text; knows nothing of which networks there are."""

import re
from dataclasses import dataclass

_KIND = re.compile(r"<(\w+):")


@dataclass(frozen=True)
class NetworkTag:
    """`<kind:item:item…>`. Items of the form name=value are named, the others count by position."""

    kind: str  # such as lora
    items: tuple[str, ...]

    @property
    def positional(self) -> tuple[str, ...]:
        return tuple(item for item in self.items if item.count("=") != 1)

    @property
    def named(self) -> dict[str, str]:
        return dict(item.split("=") for item in self.items if item.count("=") == 1)


def extract_networks(prompt: str) -> tuple[str, list[NetworkTag]]:
    """The text without its tags, of whatever kind, and the tags in order."""
    text: list[str] = []
    tags: list[NetworkTag] = []
    position = 0
    while match := _KIND.search(prompt, position):
        end = prompt.find(">", match.end())
        if end < 0:
            break
        if end == match.end():  # `<kind:>` names nothing
            text.append(prompt[position:end])
            position = end
            continue
        text.append(prompt[position : match.start()])
        tags.append(NetworkTag(match[1], tuple(prompt[match.end() : end].split(":"))))
        position = end + 1
    text.append(prompt[position:])
    return "".join(text), tags
