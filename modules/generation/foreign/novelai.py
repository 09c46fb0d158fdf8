"""NovelAI: Title, Description, Software, Source, and a Comment in JSON. Braces in its prompts strengthen by 1.05, and
`1.2::words::` by a number."""

import re
from collections.abc import Mapping
from typing import Any

from modules.generation.foreign.draft import Draft, Foreign, load_object, number, whole

STEP = 1.05  # of one brace
MAX_DEPTH = 60


def read(items: Mapping[str, str]) -> Foreign | None:
    comment = load_object(items.get("Comment"))
    if not items.get("Software", "").startswith("NovelAI") and not ("uc" in comment and "sampler" in comment):
        return None
    comment = comment or load_object(items.get("parameters"))
    source = items.get("Source", "")
    draft = Draft("NovelAI", source)
    draft.prompt = weights(_prompt(comment, "v4_prompt", "prompt", draft) or items.get("Description", ""))
    draft.negative = weights(_prompt(comment, "v4_negative_prompt", "uc", draft))
    draft.take(comment, "steps", "Steps", whole)
    draft.sampler(comment.pop("sampler", None), comment.pop("noise_schedule", None))
    draft.take(comment, "scale", "CFG scale")
    draft.take(comment, "seed", "Seed", whole)
    draft.size(comment.pop("width", None), comment.pop("height", None))
    if comment.get("request_type") in ("Img2ImgRequest", "NativeInfillingRequest", "InfillingRequest"):
        draft.take(comment, "strength", "Denoising strength")
        draft.note("the init image: it is not in the picture")
    if (
        comment
        and source.startswith(("Stable Diffusion", "NovelAI Diffusion V1", "NovelAI Diffusion V2"))
        or not source
    ):
        draft.fields |= {"Clip skip": 2, "ENSD": 31337}  # how its first models are used in A1111
    if source:
        draft.note(f"the model: {source[:80]}, which runs at NovelAI only")
    silent = (
        "strength",
        "noise",
        "n_samples",
        "signed_hash",
        "request_type",
        "version",
        "uncond_scale",
        "extra_noise_seed",
    )
    draft.note_rest(comment, silent)
    return draft.finish()


def _prompt(comment: dict[str, Any], structured: str, plain: str, draft: Draft) -> str:
    """Version 4 has a caption for each character beside the one for all."""
    text, parts = comment.pop(plain, None), comment.pop(structured, None)
    caption = parts.get("caption") if isinstance(parts, dict) else None
    if not isinstance(caption, dict):
        return text if isinstance(text, str) else ""
    base, characters = caption.get("base_caption"), caption.get("char_captions")
    captions = [one.get("char_caption") for one in characters or [] if isinstance(one, dict)] if characters else []
    captions = [one for one in captions if isinstance(one, str) and one]
    if captions:
        draft.note("the places of characters; their captions follow the prompt")
    return ", ".join(
        one for one in (base if isinstance(base, str) else text, *captions) if isinstance(one, str) and one
    )


_MARK = re.compile(r"\\.|-?\d{0,4}(?:\.\d{1,4})?::|[{}\[\]()]", re.S)


def weights(text: str) -> str:
    """NovelAI's weights as A1111's. Its parentheses are plain characters; what is open at the end ends there."""
    parts: list[str] = []
    opened: list[tuple[int, str, float]] = []  # where in parts, by which mark, and the factor

    def close() -> None:
        start, _mark, factor = opened.pop()
        if any(parts[start + 1 :]):
            parts[start] = "("
            parts.append(f":{number(factor)})")

    position = 0
    for found in _MARK.finditer(text):
        parts.append(text[position : found.start()])
        position = found.end()
        mark = found[0]
        if mark in ("{", "[") and len(opened) < MAX_DEPTH:
            opened.append((len(parts), mark, STEP if mark == "{" else 1 / STEP))
            parts.append("")
        elif mark in ("}", "]") and opened and opened[-1][1] == {"}": "{", "]": "["}[mark]:
            close()
        elif mark in ("(", ")"):
            parts.append(f"\\{mark}")
        elif mark.endswith("::"):
            if opened and opened[-1][1] == "::":
                close()
            if mark != "::":
                opened.append((len(parts), "::", _factor(mark[:-2])))
                parts.append("")
        elif mark not in ("{", "}", "[", "]"):
            parts.append(mark)
    parts.append(text[position:])
    while opened:
        close()
    return _merged("".join(parts))


def _factor(text: str) -> float:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?|-?\.\d+", text) else 1.0


_NESTED = re.compile(r"\(\(([^()\\]*):(-?[\d.]+)\):(-?[\d.]+)\)")


def _merged(text: str) -> str:
    """`((a:1.05):1.05)` is `(a:1.1025)`."""
    while True:
        text, count = _NESTED.subn(lambda m: f"({m[1]}:{number(float(m[2]) * float(m[3]))})", text)
        if not count:
            return text
