"""A1111's fields: defaults as measured, and kinds that refuse whatever does not fit."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.server.errors import ApiError
from modules.server.fields import IMG2IMG, TXT2IMG, read_fields
from tests.golden import golden as golden

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(("case", "fields"), [("empty_body", TXT2IMG), ("i2i_default_denoise", IMG2IMG)])
def test_every_field_of_a1111_has_its_default_and_its_place(golden: Path, case, fields):
    cases = json.loads((golden / "api_behaviour.json").read_text("utf-8"))
    found = next(one for one in cases if one["name"] == case)
    theirs, sent = found["response"]["parameters"], found["sent"]["json"]
    ours = {name: sent.get(name, field.default) for name, field in fields.items()} | {"init_images": None}
    if fields is TXT2IMG:
        del ours["init_images"]
    assert ours == theirs and list(fields) == list(theirs)


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(IMG2IMG.keys() | TXT2IMG.keys())), value=ANYTHING)
def test_any_value_is_taken_or_refused_by_name(name, value):
    fields = IMG2IMG if name in IMG2IMG else TXT2IMG
    try:
        taken = read_fields({name: value}, fields)[name]
    except ApiError as error:
        assert error.status == 422 and error.detail and error.detail[0]["field"] == name
        assert len(error.sentence) < 400 and error.sentence.startswith(f"{name}: must be ")
    else:
        assert taken == value or (isinstance(value, str) and isinstance(taken, int | float))


@pytest.mark.parametrize(
    ("field", "value", "taken"),
    [
        ("steps", "20", 20),
        ("steps", 20.0, 20),
        ("seed", "-1", -1),
        ("seed", "18446744073709551615", 2**64 - 1),
        ("cfg_scale", "7", 7.0),
        ("cfg_scale", "7.5", 7.5),
        ("cfg_scale", ".5e1", 5.0),
        ("enable_hr", "true", True),
        ("enable_hr", "false", False),
        ("enable_hr", 1, True),
        ("prompt", "20", "20"),
    ],
)
def test_numbers_and_flags_may_come_as_text_and_whole_numbers_with_a_point(field, value, taken):
    found = read_fields({field: value}, TXT2IMG)[field]
    assert (found, type(found)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", True, "steps: must be a whole number, got true"),
        ("steps", "20.5", "steps: must be a whole number, got '20.5'"),
        ("steps", "", "steps: must be a whole number, got ''"),
        ("steps", "٢٠x", "steps: must be a whole number, got '٢٠x'"),
        ("steps", "1" * 21, f"steps: must be a whole number, got '{'1' * 21}'"),
        ("steps", 20.5, "steps: must be a whole number, got '20.5'"),
        ("cfg_scale", "nan", "cfg_scale: must be a number, got 'nan'"),
        ("cfg_scale", "1e999", "cfg_scale: must be a number, got '1e999'"),
        ("cfg_scale", "7,5", "cfg_scale: must be a number, got '7,5'"),
        ("cfg_scale", True, "cfg_scale: must be a number, got true"),
        ("cfg_scale", None, "cfg_scale: must be a number, got null"),
        ("hr_scale", [2], "hr_scale: must be a number, got a list"),
        ("enable_hr", "yes", "enable_hr: must be true or false, got 'yes'"),
        ("styles", ["a", 1], "styles: must be a list of text, got a list"),
        ("alwayson_scripts", [], "alwayson_scripts: must be an object, got a list"),
    ],
)
def test_the_sentence_says_what_came(field, value, said):
    with pytest.raises(ApiError) as refused:
        read_fields({field: value}, TXT2IMG)
    assert refused.value.sentence == said


def test_all_wrong_fields_are_told_at_once():
    with pytest.raises(ApiError) as refused:
        read_fields({"steps": "x", "width": None, "prompt": 5}, TXT2IMG)
    assert [one["field"] for one in refused.value.detail or []] == ["prompt", "steps", "width"]


def test_numbers_become_floats_and_flags_booleans():
    found = read_fields({"denoising_strength": 1, "inpaint_full_res": 0, "inpainting_mask_invert": True}, IMG2IMG)
    assert (type(found["denoising_strength"]), found["inpaint_full_res"]) == (float, False)
    assert found["inpainting_mask_invert"] == 1 and type(found["inpainting_mask_invert"]) is int
    assert type(found["subseed_strength"]) is int  # A1111's own default stays as it is
