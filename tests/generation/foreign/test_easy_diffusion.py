import json

import pytest

from modules.generation.foreign.easy_diffusion import read
from modules.generation.infotext import parse

VALUES = {
    "prompt": "a cat",
    "negative_prompt": "bad",
    "seed": "42",
    "num_inference_steps": "25",
    "guidance_scale": "7.5",
    "width": "512",
    "height": "640",
    "sampler_name": "euler_a",
    "use_stable_diffusion_model": "sd-v1-5",
    "use_vae_model": "None",
    "clip_skip": "True",
    "use_lora_model": "ink",
    "lora_alpha": "0.5",
    "use_upscale": "RealESRGAN_x4plus",
    "tiling": "none",
}


@pytest.mark.parametrize("packed", [False, True])
def test_its_parameters(packed: bool):
    found = read({"exif comment": json.dumps(VALUES)} if packed else VALUES)
    assert found is not None and found.program == "Easy Diffusion"
    parsed = parse(found.infotext)
    assert (parsed["Prompt"], parsed["Negative prompt"]) == ("a cat <lora:ink:0.5>", "bad")
    assert (parsed["Sampler"], parsed["Clip skip"], parsed["Model"], parsed["Size-2"]) == (
        "Euler a",
        "2",
        "sd-v1-5",
        "640",
    )
    assert found.unmapped == ("use_upscale: RealESRGAN_x4plus", "tiling: none")


def test_lists_of_loras_and_others():
    found = read({**VALUES, "use_lora_model": "['ink', 'paper']", "lora_alpha": "[0.5, 1]"})
    assert found is not None and "a cat <lora:ink:0.5><lora:paper:1>" in found.infotext
    assert read({"prompt": "x"}) is None and read({"num_inference_steps": "5"}) is None
