"""From form values to a request: parts and their switches, words for choices, and what a form may be filled with."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modules.generation.request import GenerationRequest
from modules.library.checkpoints import CheckpointLibrary
from modules.web import form

HIRES: dict[str, Any] = {
    "hires": True,
    "hires.upscaler": "Latent (nearest)",
    "hires.scale": 1.5,
    "hires.steps": 0,
    "hires.checkpoint": "Use same checkpoint",
    "hires.sampler": "Euler a",
    "hires.schedule": "Use same scheduler",
}
EXTRA = {
    "extra": True,
    "variation_seed": 5,
    "variation_strength": 0.25,
    "seed_resize_width": 64,
    "seed_resize_height": 0,
}


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


def test_hires_fix_is_a_part_with_empty_for_the_same() -> None:
    hires = form.request_from(HIRES).hires
    assert hires is not None
    assert (hires.upscaler, hires.scale, hires.sampler, hires.schedule, hires.checkpoint) == (
        "Latent (nearest)", 1.5, "Euler a", "", "",
    )  # fmt: skip


@pytest.mark.parametrize("switch", ["hires", "refiner"])
def test_a_part_that_is_off_is_left_out_whatever_its_boxes_hold(switch: str) -> None:
    values = {switch: False, "hires.steps": 10**6, "refiner.checkpoint": "x", "refiner.switch_at": 99}
    assert form.request_from(values) == GenerationRequest()


@pytest.mark.parametrize("empty", ["", None])
def test_a_refiner_needs_its_checkpoint(empty: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        form.request_from({"refiner": True, "refiner.checkpoint": empty, "refiner.switch_at": 0.8})
    assert [(one["field"], one["kind"]) for one in form.problems_of(caught.value)] == [
        ("refiner.checkpoint", "string_too_short")
    ]


def test_the_extras_of_the_seed_count_only_while_they_are_open() -> None:
    assert form.request_from(EXTRA).variation_strength == 0.25
    assert form.request_from(EXTRA | {"extra": False}) == GenerationRequest()


def test_styles_and_overridden_settings() -> None:
    request = form.request_from({"styles": ["one", "two"], "override_settings": ["Clip skip: 2", "ENSD: 31337"]})
    assert request.styles == ("one", "two")
    assert request.overrides == {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337}


@pytest.mark.parametrize("written", [["Clip skip: 99"], ["Nonsense"], ["Nonsense: 1"]])
def test_what_is_no_setting_is_refused(written: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot be overridden"):
        form.request_from({"override_settings": written})


def test_problems_are_data_for_the_page() -> None:
    with pytest.raises(ValidationError) as caught:
        form.request_from({"width": 70, "steps": 999, "sampler": "Eular", **HIRES, "hires.scale": 0.5})
    found = {one["field"]: one for one in form.problems_of(caught.value)}
    assert found["width"]["kind"] == "multiple_of" and found["width"]["limit"] == 8 and found["width"]["got"] == "70"
    assert found["steps"]["kind"] == "less_than_equal" and found["steps"]["limit"] == 150
    assert found["sampler"]["text"] == "no sampler named 'Eular'; did you mean 'Euler'?"
    assert any(field.startswith("hires.scale") for field in found)


def test_a_huge_wrong_value_is_told_in_short() -> None:
    with pytest.raises(ValidationError) as caught:
        form.request_from({"sampler": "x" * 10_000})
    assert len(str(form.problems_of(caught.value))) < 500


def test_fields_are_checked_one_by_one(library: CheckpointLibrary) -> None:
    good, problems = form.checked(
        {"steps": 10**9, "width": "99999", "seed": 99, "checkpoint": "gone", "hires.steps": -1, "hires": 1}, library
    )
    assert {one["field"] for one in problems} == {"steps", "width", "checkpoint", "hires.steps"}
    assert good == {"seed": 99, "hires": True}


def test_choices_are_checked_as_the_boxes_show_them(library: CheckpointLibrary) -> None:
    saved = {
        **HIRES,
        "init.mask.invert": "Inpaint not masked",
        "init.mask.only_masked": True,
        "init.denoising_strength": 0.5,
        "styles": ["a"],
        "override_settings": ["Clip skip: 2"],
    }
    good, problems = form.checked(saved, library)
    assert problems == [] and good == saved | {"init.mask.only_masked": "Only masked"}


def test_unknown_names_are_left_out(library: CheckpointLibrary) -> None:
    wild = {"save": False, "__class__": "x", "hires.__class__": 1, "no.such": 2, "prompt": "a"}
    assert form.checked(wild, library) == ({"prompt": "a"}, [])


def test_paths_of_parts() -> None:
    nested = {"prompt": "a", "hires": {"steps": 3}, "mask": {"soft": {"x": 1}}}
    assert form.flat(nested) == {"prompt": "a", "hires.steps": 3, "mask.soft.x": 1}
