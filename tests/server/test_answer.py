"""What `info` says beyond the infotext's usual fields: held to what A1111 answered for every measured case."""

import pytest

from modules.generation.infotext import stated
from modules.server import img2img, txt2img
from modules.server.answer import extra_parameters
from modules.settings.schema import Settings
from tests.golden import golden as golden
from tests.golden import golden_cases

# A1111 does not know this name of a sampler, and takes DPM++ 2M.
OTHER_SAMPLER = ("sampler_index_alias",)
CASES = {name: case for name, case in golden_cases().items() if case["status"] == 200}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="  # 1×1


def request_of(case):
    body = dict(case["request"])
    if case["endpoint"] == "txt2img":
        return txt2img.understand(body, Settings()).request
    body |= {"init_images": [PIXEL] * len(body["init_images"])} | ({"mask": PIXEL} if "mask" in body else {})
    return img2img.understand(body, Settings(), lambda image: "1" * 64).request


@pytest.mark.parametrize("name", [*CASES] or ["none"])
def test_extra_parameters_are_the_measured_ones(golden, name):
    case = CASES[name]
    request = request_of(case)
    theirs = case["info"]["extra_generation_params"]
    ours = extra_parameters(request, stated(case["infotexts"][0]))
    if name in OTHER_SAMPLER:
        theirs = {}
    assert {key: (type(value), value) for key, value in ours.items()} == {
        key: (type(value), value) for key, value in theirs.items()
    }


def test_numbers_that_are_names_stay_text():
    from modules.generation.request import GenerationRequest

    said = {"Lora hashes": "123456789012", "NGMS": "3.0", "Pad conds": "True", "Mask blur": "4", "Odd": "007"}
    assert extra_parameters(GenerationRequest(sampler="Euler"), said) == {
        "Lora hashes": "123456789012",
        "NGMS": 3.0,
        "Pad conds": True,
        "Mask blur": 4,
        "Odd": "007",
    }
