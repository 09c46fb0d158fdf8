import json

from modules.generation.foreign.civitai import read
from modules.generation.infotext import parse

RESOURCES = [
    {"type": "checkpoint", "modelVersionId": 128713, "modelName": "DreamShaper", "modelVersionName": "8"},
    {"type": "lora", "weight": 0.8, "modelVersionId": 5, "modelName": "Ink, paper: style", "modelVersionName": "v1"},
]
TEXT = (
    "a cat\nNegative prompt: bad\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x768, "
    "Clip skip: 2, "
    f"Civitai resources: {json.dumps(RESOURCES)}, Civitai metadata: {{}}"
)


def test_an_infotext_with_resources():
    found = read({"exif comment": TEXT})
    assert found is not None and found.program == "Civitai"
    assert found.infotext == TEXT.split(", Civitai resources")[0]
    assert found.unmapped == ("checkpoint DreamShaper 8", "lora Ink, paper: style v1, weight 0.8")
    assert parse(found.infotext)["Seed"] == "5"


def test_what_follows_the_resources_is_kept():
    found = read({"parameters": TEXT + ", Version: v1"})
    assert found is not None and found.infotext.endswith("Clip skip: 2, Version: v1")
    broken = read({"parameters": TEXT[:-60] + "[[["})
    assert broken is not None and broken.infotext.endswith("Clip skip: 2")
    assert read({"parameters": "x\nCivitai resources: " + "[" * 100_000}) is not None


def test_parameters_beside_a_graph():
    extra = {"prompt": "a cat", "negativePrompt": "bad", "cfgScale": 3.5, "steps": 25, "sampler": "DPM++ 2M Karras"}
    extra |= {
        "seed": 7,
        "width": 832,
        "height": 1216,
        "clipSkip": 2,
        "resources": [{"modelVersionId": 9, "strength": 0.5}],
    }
    for items in (
        {"exif comment": json.dumps({"extra": {}, "extraMetadata": json.dumps(extra)})},
        {"prompt": json.dumps({"3": {}, "extraMetadata": extra})},
    ):
        found = read(items)
        assert found is not None
        parsed = parse(found.infotext)
        assert (parsed["Prompt"], parsed["Sampler"], parsed["Schedule type"]) == ("a cat", "DPM++ 2M", "Karras")
        assert (parsed["CFG scale"], parsed["Size-1"], parsed["Clip skip"]) == ("3.5", "832", "2")
        assert found.unmapped == ("resource 9, weight 0.5",)
    assert read({"prompt": json.dumps({"extraMetadata": 7})}) is None
