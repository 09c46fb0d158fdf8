import json
from typing import Any

import pytest

from modules.generation.foreign.fooocus import read
from modules.generation.infotext import parse

FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "full_negative_prompt": ["ugly", "blurry"],
    "full_prompt": ["a cat", "cinematic still a cat"],
    "guidance_scale": 4,
    "lora_combined_1": "offset_v1 : 0.1",
    "loras": [["offset_v1", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "ugly",
    "performance": "Speed",
    "prompt": "a cat",
    "prompt_expansion": "a cat, intricate",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "1234567",
    "sharpness": 2,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.0",
}


def found(values: dict[str, Any], key: str = "parameters") -> tuple[dict[str, Any], tuple[str, ...]]:
    result = read({key: json.dumps(values)})
    assert result is not None
    return parse(result.infotext), result.unmapped


@pytest.mark.parametrize("key", ["parameters", "exif comment"])
def test_its_own_scheme(key: str):
    parsed, unmapped = found(FOOOCUS, key)
    assert parsed["Prompt"] == "a cat, cinematic still a cat <lora:offset_v1:0.1>"
    assert (parsed["Negative prompt"], parsed["Size-1"], parsed["Seed"]) == ("ugly, blurry", "1152", "1234567")
    assert (parsed["Model"], parsed["Model hash"], parsed["Clip skip"]) == ("juggernautXL_v8", "aeb7e9e689", "2")
    assert "VAE" not in parsed and "Refiner" not in parsed
    assert unmapped == ("adm_guidance: (1.5, 0.8, 0.3)", "sharpness: 2")


def test_without_the_full_prompt_styles_are_told():
    plain = {name: value for name, value in FOOOCUS.items() if name not in ("full_prompt", "loras")}
    parsed, unmapped = found({**plain, "refiner_model": "xl-refiner.safetensors", "refiner_switch": 0.6})
    assert parsed["Prompt"] == "a cat <lora:offset_v1:0.1>"
    assert (parsed["Refiner"], parsed["Refiner switch at"]) == ("xl-refiner", "0.6")
    assert "styles: ['Fooocus V2']" in unmapped and "prompt_expansion: a cat, intricate" in unmapped


def test_the_scheme_that_looks_like_an_infotext():
    text = (
        "a cat\nNegative prompt: ugly\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 5, Size: 1152x896, CFG scale: 4, "
        'Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernautXL_v8, Version: Fooocus v2.5.0'
    )
    result = read({"parameters": text})
    assert result is not None and (result.program, result.infotext) == ("Fooocus", text)
    assert "Sharpness: 2" in result.unmapped


def test_ruined_fooocus():
    values = {"Prompt": "a cat", "Negative": "bad", "steps": 20, "cfg": 7, "width": 1024, "height": 768, "seed": 5}
    values |= {
        "sampler_name": "euler",
        "scheduler": "normal",
        "base_model_name": "m.safetensors",
        "software": "RuinedFooocus",
    }
    result = read({"parameters": json.dumps(values)})
    assert result is not None and result.program == "RuinedFooocus" and result.unmapped == ()
    parsed = parse(result.infotext)
    assert (parsed["Prompt"], parsed["CFG scale"], parsed["Size-2"], parsed["Model"]) == ("a cat", "7", "768", "m")


@pytest.mark.parametrize("value", [None, 1, [], {}, "x", [1], True, "[[" * 5000])
def test_odd_values_do_no_harm(value: Any):
    for key in FOOOCUS:
        if key != "base_model":
            found({**FOOOCUS, key: value})
