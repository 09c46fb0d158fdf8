import json
from typing import Any

import pytest

from modules.generation.foreign.draft import Draft
from modules.generation.foreign.invokeai import read, weights
from modules.generation.infotext import parse
from tests.ending import ends

METADATA = {
    "app_version": "3.4.0",
    "generation_mode": "txt2img",
    "positive_prompt": "a (red cat)1.2, shiny++",
    "negative_prompt": "blurry",
    "width": 512,
    "height": 640,
    "seed": 9,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 1,
    "model": {"model_name": "dreamshaper-8", "base_model": "sd-1", "model_type": "main"},
    "vae": {"model_name": "sd-vae-ft-mse"},
    "loras": [{"lora": {"model_name": "ink"}, "weight": 0.75}, {"model": {"name": "paper"}, "weight": 1}],
    "controlnets": [],
}


def found(items: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    result = read({key: value if isinstance(value, str) else json.dumps(value) for key, value in items.items()})
    assert result is not None and result.program == "InvokeAI"
    return parse(result.infotext), result.unmapped


def test_metadata_of_version_three():
    parsed, unmapped = found({"invokeai_metadata": METADATA})
    assert parsed["Prompt"] == "a (red cat:1.2), (shiny:1.21) <lora:ink:0.75><lora:paper:1>"
    assert (parsed["Sampler"], parsed["Schedule type"], parsed["Model"]) == ("DPM++ 2M", "Karras", "dreamshaper-8")
    assert (parsed["VAE"], parsed["Clip skip"], parsed["RNG"], parsed["Size-2"]) == ("sd-vae-ft-mse", "2", "CPU", "640")
    assert parsed["Version"] == "InvokeAI 3.4.0" and unmapped == ()


def test_high_resolution_refiner_and_what_is_left():
    extra = {"hrf_enabled": True, "hrf_strength": 0.45, "hrf_width": 1024, "hrf_height": 1280, "hrf_method": "ESRGAN"}
    extra |= {"refiner_model": {"name": "refiner"}, "refiner_start": 0.8, "seamless_x": True, "seamless_y": True}
    extra |= {"controlnets": [{"image": 1}]}
    parsed, unmapped = found({"invokeai_metadata": {**METADATA, **extra}})
    assert (parsed["Hires resize-1"], parsed["Hires upscaler"], parsed["Denoising strength"]) == (
        "1024",
        "ESRGAN",
        "0.45",
    )
    assert (parsed["Refiner"], parsed["Refiner switch at"], parsed["Tiling"]) == ("refiner", "0.8", "True")
    assert unmapped == ('controlnets: [{"image": 1}]',)


def test_metadata_of_version_two():
    image = {
        "prompt": [{"prompt": "a cat [ugly, blurry] on a mat", "weight": 1.0}],
        **{
            "steps": 50,
            "cfg_scale": 7.5,
            "height": 512,
            "width": 512,
            "seed": 3,
            "sampler": "k_lms",
            "type": "txt2img",
        },
        **{"seamless": False, "threshold": 0, "perlin": 0.1, "variations": []},
    }
    parsed, unmapped = found({"sd-metadata": {"app_version": "2.3", "model_weights": "sd-1.5", "image": image}})
    assert (parsed["Prompt"], parsed["Negative prompt"]) == ("a cat on a mat", "ugly, blurry")
    assert (parsed["Sampler"], parsed["Model"], parsed["Seed"]) == ("LMS", "sd-1.5", "3")
    assert unmapped == ("perlin: 0.1",)


def test_the_first_versions_command_line():
    parsed, unmapped = found({"Dream": '"a cat, sitting" -s 40 -S 1234 -W512 -H 768 -C 8.5 -A k_euler_a -G 0.8'})
    assert (parsed["Prompt"], parsed["Steps"], parsed["Seed"], parsed["Size-2"]) == (
        "a cat, sitting",
        "40",
        "1234",
        "768",
    )
    assert (parsed["CFG scale"], parsed["Sampler"]) == ("8.5", "Euler a") and unmapped == ("-G", "0.8")
    assert read({"Dream": '"open -s 4'}) is not None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("plain words", "plain words"),
        ("cat+", "(cat:1.1)"),
        ("cat--, dog", "(cat:0.81), dog"),
        ("(big cat)++", "(big cat:1.21)"),
        ("(big (old)1.5 cat)0.5", "(big (old:1.5) cat:0.5)"),
        ("(just words)", "\\(just words\\)"),
        ("half-open (a", "half-open \\(a"),
        ("\\(kept\\)", "\\(kept\\)"),
        ("[x]", "\\[x\\]"),
    ],
)
def test_weights(theirs: str, ours: str):
    assert weights(theirs, Draft("x")) == ours


def test_swaps_are_told():
    draft = Draft("x")
    weights("a (cat).swap(dog)", draft)
    assert any("swap" in note for note in draft.finish().unmapped)


def test_hostile_texts_end():
    for text in (
        "(" * 150_000,
        "(a)+" * 60_000,
        "a+" * 150_000,
        "+" * 300_000,
        "[" * 150_000,
        "(" * 60_000 + ")1" * 60_000,
    ):
        with ends():
            weights(text, Draft("x"))
            read({"Dream": f'"{text}"'})
            read({"sd-metadata": json.dumps({"image": {"prompt": text}})})


@pytest.mark.parametrize("value", [None, 1, [], {}, "x", [1], {"a": 1}, True])
def test_odd_values_do_no_harm(value: Any):
    for key in METADATA:
        assert read({"invokeai_metadata": json.dumps({**METADATA, key: value})}) is not None
