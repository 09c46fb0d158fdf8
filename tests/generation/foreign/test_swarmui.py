import json
from typing import Any

import pytest

from modules.generation.foreign.swarmui import read
from modules.generation.infotext import parse

PARAMS = {
    "prompt": "a cat",
    "negativeprompt": "bad",
    "model": "SDXL/juggernaut",
    "seed": 1234,
    "steps": 24,
    "cfgscale": 6.5,
    "aspectratio": "1:1",
    "width": 1024,
    "height": 1024,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "automaticvae": True,
    "loras": ["ink", "paper"],
    "loraweights": ["0.8", "1"],
    "swarm_version": "0.9.4.0",
}


def found(params: dict[str, Any], key: str = "parameters", **more: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    result = read({key: json.dumps({"sui_image_params": params, **more})})
    assert result is not None and result.program == "SwarmUI"
    return parse(result.infotext), result.unmapped


@pytest.mark.parametrize("key", ["parameters", "exif comment"])
def test_the_plain_case(key: str):
    models = [{"name": "SDXL/juggernaut.safetensors", "param": "model", "hash": "0x" + "ab" * 32}]
    parsed, unmapped = found(PARAMS, key, sui_models=models)
    assert parsed["Prompt"] == "a cat <lora:ink:0.8><lora:paper:1>" and parsed["Model"] == "juggernaut"
    assert (parsed["Sampler"], parsed["Schedule type"], parsed["Model hash"]) == (
        "DPM++ 2M SDE",
        "Karras",
        "ababababab",
    )
    assert parsed["Version"] == "SwarmUI 0.9.4.0" and unmapped == ()


def test_second_pass_refiner_and_variation():
    extra = {"refinercontrolpercentage": 0.3, "refinerupscale": 1.5, "refinerupscalemethod": "model-4x-UltraSharp.pth"}
    extra |= {"variationseed": 5, "variationseedstrength": 0.2, "clipstopatlayer": -2, "controlnetstrength": 0.7}
    parsed, unmapped = found({**PARAMS, **extra})
    assert (parsed["Hires upscale"], parsed["Denoising strength"], parsed["Hires upscaler"]) == (
        "1.5",
        "0.3",
        "4x-UltraSharp",
    )
    assert (parsed["Variation seed"], parsed["Variation seed strength"], parsed["Clip skip"]) == ("5", "0.2", "2")
    assert unmapped == ("controlnetstrength: 0.7",)
    parsed, _ = found({**PARAMS, "refinercontrolpercentage": 0.2, "refinermodel": "refiner"})
    assert (parsed["Refiner"], parsed["Refiner switch at"]) == ("refiner", "0.8")
    latent, _ = found({**PARAMS, **extra, "refinerupscalemethod": "latent-bislerp"})
    assert latent["Hires upscaler"] == "Latent (bislerp)"


@pytest.mark.parametrize("value", [None, 1, [], {}, "x", [1], True, "a,b"])
def test_odd_values_do_no_harm(value: Any):
    for key in (*PARAMS, "refinercontrolpercentage", "refinerupscale", "clipstopatlayer", "vae", "initimagecreativity"):
        found({**PARAMS, "refinerupscale": 2, "refinercontrolpercentage": 0.5, key: value})
    assert read({"parameters": json.dumps({"sui_image_params": value})}) is None or value == {}
