import json
from typing import Any

import pytest

from modules.generation.foreign.novelai import read, weights
from modules.generation.infotext import parse
from tests.ending import ends

COMMENT = {
    "steps": 28,
    "sampler": "k_euler_ancestral",
    "seed": 123,
    "strength": 0.7,
    "noise": 0.2,
    "scale": 11.0,
    "uc": "lowres, [bad]",
}


def items(comment: dict[str, Any], **changes: str) -> dict[str, str]:
    return {
        "Title": "AI generated image",
        "Description": "a {girl}",
        "Software": "NovelAI",
        "Source": "Stable Diffusion 1D44365E",
        "Comment": json.dumps(comment),
        **changes,
    }


def test_the_first_version():
    found = read(items({**COMMENT, "width": 512, "height": 768}))
    assert found is not None and found.program == "NovelAI"
    assert found.infotext == (
        "a (girl:1.05)\nNegative prompt: lowres, (bad:0.9524)\nSteps: 28, Sampler: Euler a, CFG scale: 11, Seed: 123, "
        "Size: 512x768, Clip skip: 2, ENSD: 31337, Version: NovelAI Stable Diffusion 1D44365E"
    )
    assert found.unmapped == ("the model: Stable Diffusion 1D44365E, which runs at NovelAI only",)


def test_version_four_has_characters():
    v4 = {
        "caption": {
            "base_caption": "two girls, 1.5::rain::",
            "char_captions": [{"char_caption": "red hair", "centers": []}],
        }
    }
    comment = {
        **COMMENT,
        "prompt": "two girls",
        "v4_prompt": v4,
        "noise_schedule": "karras",
        "sm": True,
        "cfg_rescale": 0.3,
    }
    found = read(items({**comment, "request_type": "Img2ImgRequest"}, Source="NovelAI Diffusion V4 37442FCA"))
    assert found is not None
    parsed = parse(found.infotext)
    assert parsed["Prompt"] == "two girls, (rain:1.5), red hair" and parsed["Schedule type"] == "Karras"
    assert parsed["Denoising strength"] == "0.7" and "ENSD" not in parsed
    assert "cfg_rescale: 0.3" in found.unmapped and "sm: true" in found.unmapped


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("plain", "plain"),
        ("{a}", "(a:1.05)"),
        ("{{a}}", "(a:1.1025)"),
        ("{{{a}}} b", "(a:1.1576) b"),
        ("[a], {b}", "(a:0.9524), (b:1.05)"),
        ("{a, {b}}", "(a, (b:1.05):1.05)"),
        ("smile (happy)", "smile \\(happy\\)"),
        ("1.3::a, b::, c", "(a, b:1.3), c"),
        ("1.3::a 0.8::b", "(a :1.3)(b:0.8)"),
        ("-1::hat::", "(hat:-1)"),
        ("{a", "(a:1.05)"),
        ("a}", "a"),
        ("{}", ""),
        ("[{]}", ""),
    ],
)
def test_weights(theirs: str, ours: str):
    assert weights(theirs) == ours


def test_hostile_weights_end():
    for text in (
        "{" * 300_000,
        "{a" * 150_000,
        "1::" * 90_000,
        "{[" * 150_000 + "]}" * 150_000,
        "((" * 150_000,
        "1" * 300_000,
    ):
        with ends():
            weights(text)


def test_others_are_not_theirs():
    assert read({"Software": "GIMP", "Comment": "hello"}) is None
    assert read({"Comment": json.dumps({"uc": "x"})}) is None
    assert read({"Software": "NovelAI", "Comment": "no json", "Description": "a"}) is not None
