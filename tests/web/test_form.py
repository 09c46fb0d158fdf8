"""From form values to a request, and from infotexts back to form values."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from modules.library.checkpoints import CheckpointLibrary
from modules.web import form

INFOTEXT = (
    "red apple\nNegative prompt: fog\n"
    "Steps: 7, Sampler: Euler, Schedule type: Karras, CFG scale: 5.5, Seed: 99, Size: 128x192, Model: gone"
)


@pytest.fixture
def library(tmp_path: Path) -> CheckpointLibrary:
    return CheckpointLibrary([tmp_path], tmp_path / "cache.db")


def test_numbers_of_a_browser_become_those_of_the_request() -> None:
    request = form.request_from({"prompt": "a", "steps": 20.0, "cfg_scale": 7, "seed": None, "width": 64.0})
    assert (request.steps, request.cfg_scale, request.seed, request.width) == (20, 7.0, -1, 64)
    assert isinstance(request.steps, int)
    assert isinstance(request.cfg_scale, int)  # A1111's page writes "CFG scale: 7" for it, its API 7.0


def test_what_is_not_whole_stays_wrong() -> None:
    with pytest.raises(ValidationError):
        form.request_from({"steps": 20.5})


def test_problems_are_data_for_the_page() -> None:
    with pytest.raises(ValidationError) as caught:
        form.request_from({"width": 70, "steps": 999, "sampler": "Eular"})
    found = {one["field"]: one for one in form.problems_of(caught.value)}
    assert found["width"]["kind"] == "multiple_of" and found["width"]["limit"] == 8 and found["width"]["got"] == "70"
    assert found["steps"]["kind"] == "less_than_equal" and found["steps"]["limit"] == 150
    assert found["sampler"]["text"] == "no sampler named 'Eular'; did you mean 'Euler'?"


def test_a_huge_wrong_value_is_told_in_short() -> None:
    with pytest.raises(ValidationError) as caught:
        form.request_from({"sampler": "x" * 10_000})
    assert len(str(form.problems_of(caught.value))) < 500


def test_an_infotext_names_the_fields() -> None:
    assert form.from_infotext(INFOTEXT) == {
        "prompt": "red apple",
        "negative_prompt": "fog",
        "sampler": "Euler",
        "schedule": "Karras",
        "steps": 7,
        "cfg_scale": 5.5,
        "seed": 99,
        "width": 128,
        "height": 192,
        "checkpoint": "gone",
    }


def test_a_text_without_parameters_is_a_prompt() -> None:
    assert form.from_infotext(" red apple, on a table ") == {"prompt": "red apple, on a table"}


def test_fields_are_checked_one_by_one(library: CheckpointLibrary) -> None:
    good, problems = form.checked(form.from_infotext(INFOTEXT) | {"steps": 10**9, "width": "99999"}, library)
    assert {one["field"] for one in problems} == {"steps", "width", "checkpoint"}
    assert "checkpoint" not in good and good["seed"] == 99 and good["height"] == 192


def test_unknown_names_are_left_out(library: CheckpointLibrary) -> None:
    assert form.checked({"save": False, "__class__": "x", "prompt": "a"}, library) == ({"prompt": "a"}, [])
