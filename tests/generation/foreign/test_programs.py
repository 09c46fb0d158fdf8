import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.foreign.programs import read_foreign

INFOTEXT = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 2, "latent_image": ["2", 0]}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
}


def program(items: dict[str, str]) -> str | None:
    found = read_foreign(items)
    return found.program if found else None


def test_who_made_it():
    graph = json.dumps(GRAPH)
    assert program({"parameters": INFOTEXT}) is None and program({}) is None
    assert program({"parameters": INFOTEXT, "prompt": graph}) is None  # ComfyUI nodes that write an infotext
    assert program({"prompt": graph}) == "ComfyUI"
    assert program({"parameters": json.dumps({"sui_image_params": {"prompt": "a"}}), "prompt": graph}) == "SwarmUI"
    assert program({"parameters": INFOTEXT + ", Version: Fooocus v2"}) == "Fooocus"
    assert program({"exif comment": INFOTEXT + ", Civitai resources: [], Civitai metadata: {}"}) == "Civitai"
    assert program({"Software": "NovelAI", "Description": "a"}) == "NovelAI"
    assert program({"invokeai_metadata": '{"positive_prompt": "a"}'}) == "InvokeAI"


@pytest.mark.parametrize("text", ["{" * 50_000, "[[" * 50_000, '"' * 50_000, "\n" * 50_000, "{}", "[]", "null", "x"])
def test_any_text_in_any_place(text: str):
    names = ("parameters", "exif comment", "prompt", "workflow", "Comment", "invokeai_metadata", "sd-metadata", "Dream")
    for name in (*names, "XML:com.adobe.xmp", "Software", "num_inference_steps"):
        read_foreign({name: text})
    read_foreign(dict.fromkeys(names, text))


KEYS = ("class_type", "inputs", "latent_image", "seed", "steps", "sampler_name", "positive", "text", "images", "nodes")
KEYS += ("links", "sui_image_params", "loras", "loraweights", "model", "base_model", "full_prompt", "image", "prompt")
KEYS += (
    "uc",
    "sampler",
    "v4_prompt",
    "caption",
    "char_captions",
    "positive_prompt",
    "vae",
    "extraMetadata",
    "resources",
)
KEYS += ("refinercontrolpercentage", "refinerupscale", "hrf_enabled", "hrf_method", "type", "widgets_values", "1", "2")
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["KSampler", "SaveImage", "euler", "1", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=30,
)


@given(st.sampled_from(["parameters", "exif comment", "prompt", "workflow", "Comment", "invokeai_metadata"]), values)
def test_any_json_in_any_place(name: str, value: object):
    read_foreign({name: json.dumps(value)})
    for wrapped in ({"sui_image_params": value}, {"image": value}, {"1": {"class_type": "KSampler", "inputs": value}}):
        read_foreign({name: json.dumps(wrapped), "sd-metadata": json.dumps(wrapped)})
