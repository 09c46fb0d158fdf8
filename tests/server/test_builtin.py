"""Scripts by A1111's names: always on, not here yet, not known."""

import pytest

from modules.server.builtin import NOT_YET, SCRIPTS, always_on, chosen, describe, scripts_of
from modules.server.errors import ApiError


def refusal(call, *args):
    with pytest.raises(ApiError) as refused:
        call(*args)
    assert refused.value.status == 422
    return refused.value.sentence


def test_arguments_that_are_left_out_have_their_defaults():
    assert always_on({"Soft Inpainting": {"args": [True, 2]}}, "img2img", []) == {
        "soft inpainting": [True, 2, 0.5, 4, 0, 0.5, 2]
    }
    assert always_on({"seed": {}}, "txt2img", [])["seed"][0] == -1
    assert always_on({}, "txt2img", []) == {}


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({"nope": {"args": []}}, "Script 'nope' not found"),
        ({"soft inpaint": {"args": []}}, "did you mean 'soft inpainting'?"),
        ({"loopback": {"args": []}}, "Cannot have a selectable script in the always on scripts params"),
        ({"x/y/z plot": {"args": []}}, "Cannot have a selectable script in the always on scripts params"),
        ({"Hypertile": {"args": []}}, "not available here yet"),
        ({"soft inpainting": {"args": "string"}}, "alwayson_scripts.soft inpainting.args: must be a list"),
        ({"soft inpainting": [True]}, "alwayson_scripts.soft inpainting: must be an object"),
        ({"soft inpainting": {"args": {"0": True}}}, "must be a list"),
        ({"soft inpainting": {"args": [True] * 8}}, "takes 7 arguments at most"),
        ({"soft inpainting": {"args": [True, 9]}}, "args[1]: Schedule bias must be from 0 to 8"),
        ({"soft inpainting": {"args": [True, 1, "x"]}}, "args[2]: Preservation strength must be a number"),
        ({"soft inpainting": {"args": ["yes"]}}, "args[0]: Soft inpainting must be true or false"),
        ({"refiner": {"args": [True, 5]}}, "args[1]: Checkpoint must be text"),
        ({"extra options": {"args": [1]}}, "takes 0 arguments at most"),
        ({"x" * 5000: {"args": []}}, "not found"),
    ],
)
def test_what_is_wrong_is_named_with_script_and_argument(scripts, said):
    sentence = refusal(always_on, scripts, "img2img", [])
    assert said in sentence and len(sentence) < 400


def test_soft_inpainting_is_for_img2img():
    assert "is not one of txt2img" in refusal(always_on, {"soft inpainting": {"args": []}}, "txt2img", [])


def test_arguments_that_only_the_page_sends_are_warned_of():
    warnings: list[str] = []
    always_on({"refiner": {"args": [False, "", 0.8]}, "sampler": {"args": []}}, "txt2img", warnings)
    assert warnings == []
    always_on({"refiner": {"args": [True, "x", 0.5]}}, "txt2img", warnings)
    assert warnings == ["the arguments of refiner have no effect over the API; its fields have"]


@pytest.mark.parametrize("name", [None, "", "None", "none"])
def test_no_script_is_none(name):
    assert chosen(name, ["ignored"], "txt2img") is None


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("X/Y/Z plot", "txt2img", "not available here yet"),
        ("Outpainting mk2", "img2img", "not available here yet"),
        ("Outpainting mk2", "txt2img", "belongs to img2img"),
        ("loopback", "txt2img", "belongs to img2img"),
        ("nope", "txt2img", "Script 'nope' not found"),
        ("sd upscal", "img2img", "did you mean 'sd upscale'?"),
        ("refiner", "txt2img", "always on"),
    ],
)
def test_a_chosen_script_is_refused_in_a_sentence(name, mode, said):
    assert said in refusal(chosen, name, [], mode)


def test_a_chosen_script_has_all_of_its_arguments():
    assert chosen("SD upscale", ["", 32], "img2img") == ("sd upscale", ["", 32, "None", 2.0])
    assert chosen("loopback", None, "img2img") == ("loopback", [4, 0.5, "Linear", "None"])


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("loopback", [0], "script_args[0]: Loops must be from 1 to 32"),
        ("loopback", ["2"], "script_args[0]: Loops must be a number"),
        ("loopback", [2, 2], "script_args[1]: Final denoising strength must be from 0 to 1"),
        ("loopback", [2, 0.5, 1], "script_args[2]: Denoising strength curve must be text"),
        ("loopback", [2] * 5, "loopback takes 4 arguments at most"),
        ("sd upscale", ["", 300], "script_args[1]: Tile overlap must be from 0 to 256"),
        ("sd upscale", ["", 64, None], "script_args[2]: Upscaler must be text"),
        ("sd upscale", ["", 64, "None", 9], "script_args[3]: Scale Factor must be from 1.0 to 4.0"),
        ("sd upscale", [5], "script_args[0]: must be text"),
    ],
)
def test_what_is_wrong_with_a_chosen_scripts_arguments_is_named(name, args, said):
    assert said in refusal(chosen, name, args, "img2img")


def test_script_info_describes_every_argument():
    both = describe("txt2img") + describe("img2img")
    assert [one["name"] for one in both if not one["is_img2img"]] == [one.name for one in scripts_of("txt2img")]
    soft = next(one for one in both if one["name"] == "soft inpainting")
    assert soft["is_img2img"] and soft["args"][3] == {
        "label": "Transition contrast boost", "value": 4, "minimum": 1, "maximum": 32, "step": 0.5, "choices": None,
    }  # fmt: skip
    assert not NOT_YET.keys() & {script.name for script in SCRIPTS}
