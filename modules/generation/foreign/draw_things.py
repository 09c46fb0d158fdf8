"""Draw Things: JSON as the user comment of an XMP packet."""

import html
import re
from collections.abc import Mapping

from modules.generation.foreign.draft import Draft, Foreign, load_object, stem, whole

_TAG = re.compile(r"<[^>]{0,200}>")


def read(items: Mapping[str, str]) -> Foreign | None:
    packet = next((items[name] for name in ("XML:com.adobe.xmp", "xmp") if name in items), "")
    _, _, rest = packet.partition("<exif:UserComment>")
    comment, end, _ = rest.partition("</exif:UserComment>")
    found = load_object(html.unescape(_TAG.sub("", comment[:200_000])).strip()) if end else {}
    if "c" not in found or "sampler" not in found:
        return None
    draft = Draft("Draw Things")
    prompt, negative = found.pop("c", ""), found.pop("uc", "")
    draft.prompt, draft.negative = (text if isinstance(text, str) else "" for text in (prompt, negative))
    draft.take(found, "steps", "Steps", whole)
    draft.sampler(found.pop("sampler", None))
    draft.take(found, "scale", "CFG scale")
    draft.take(found, "seed", "Seed", whole)
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(found.pop("size", ""))[:20])
    if size:
        draft.size(size[1], size[2])
    draft.take(found, "model", "Model", stem)
    if found.get("strength") not in (None, 1, 1.0):
        draft.take(found, "strength", "Denoising strength")
    loras = found.pop("lora", None)
    for lora in loras if isinstance(loras, list) else []:
        if isinstance(lora, dict):
            draft.lora(lora.get("model"), lora.get("weight", 1))
    draft.note_rest(found, ("v2", "profile", "strength"))
    return draft.finish()
