import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.infotext import generation_fields, parse, quote, write
from modules.generation.reading import to_request_fields
from modules.settings.schema import Settings
from tests.ending import ends
from tests.golden import DATA, golden_cases

PARSED = json.loads((DATA / "a1111" / "infotext_parse.json").read_text("utf-8"))
BASE = (
    "a red circle on a blue background\nNegative prompt: blurry, green\nSteps: 8, Sampler: Euler a, Schedule type: "
    "Automatic, CFG scale: 7.0, Seed: 42, Size: 128x192, Model hash: c4346f8673, Model: tiny-sd1, RNG: CPU, "
    "Version: v1.10.1"
)


def fields(settings: Settings | None = None, **changes: Any) -> dict[str, object]:
    arguments: dict[str, Any] = {
        "steps": 8,
        "sampler": "Euler a",
        "schedule": "Automatic",
        "cfg_scale": 7.0,
        "seed": 42,
        "width": 128,
        "height": 192,
        "checkpoint_name": "tiny-sd1",
        "checkpoint_hash": "c4346f8673",
        "prompt": "a red circle on a blue background",
        "negative_prompt": "blurry, green",
        "settings": settings or Settings().with_overrides({"randn_source": "CPU"}),
        "version": "v1.10.1",
    }
    return generation_fields(**{**arguments, **changes})


def test_the_text_of_a1111_character_for_character():
    assert write("a red circle on a blue background", "blurry, green", fields()) == BASE
    assert write("", "", fields()).startswith("Steps: 8, Sampler: Euler a")
    assert write("", "blurry", fields()).startswith("Negative prompt: blurry\nSteps: 8")
    assert "CFG scale: 7, " in write("a", "", fields(cfg_scale=7))


def test_every_measured_text_is_written_again(golden: Path):
    """Taken apart into prompt and fields by A1111's own info, and put together by us."""
    cases = {name: case for name, case in golden_cases().items() if case["status"] == 200}
    assert len(cases) > 150
    for name, case in cases.items():
        info = json.loads(case["info"]) if isinstance(case["info"], str) else case["info"]
        text = case["infotexts"][0]
        last = text.rsplit("\n", 1)[-1]
        pairs = re.findall(r'([A-Z][\w ]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)', last)
        values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
        assert write(info["all_prompts"][0], info["all_negative_prompts"][0], values) == text, name


def test_the_builder_orders_fields_as_measured(golden: Path):
    """All txt2img cases whose request we can make: the fields come from the request, the text must be A1111's."""
    overrides_we_know = {"randn_source", "emphasis", "CLIP_stop_at_last_layers", "eta_noise_seed_delta"}
    overrides_we_know |= {"add_version_to_infotext", "add_model_name_to_info", "add_model_hash_to_info"}
    checked = 0
    for name, case in golden_cases().items():
        request = case["request"]
        overrides = request.get("override_settings", {})
        if case["status"] != 200 or case["endpoint"] != "txt2img" or set(overrides) - overrides_we_know:
            continue
        text = case["infotexts"][0]
        last = text.rsplit("\n", 1)[-1]
        if request.get("enable_hr") or re.search(
            r"hashes|Tiling|Eta|Beta|Skip Early|Sigma|Pad|NGMS|Schedule rho", last
        ):
            continue  # what sampler, networks and hires fix add is theirs
        info = json.loads(case["info"]) if isinstance(case["info"], str) else case["info"]
        resolved = re.search(r"Schedule type: ([^,]*)", last)
        before = {}
        for field in ("Variation seed", "Variation seed strength", "Seed resize from", "Denoising strength"):
            if found := re.search(rf"{field}: ([^,]*)", last):
                before[field] = found[1]
        ours = fields(
            Settings().with_overrides(overrides),
            steps=info["steps"],
            sampler=info["sampler_name"],
            schedule=resolved[1] if resolved else None,
            cfg_scale=info["cfg_scale"],
            seed=info["all_seeds"][0],
            width=info["width"],
            height=info["height"],
            prompt=info["all_prompts"][0],
            negative_prompt=info["all_negative_prompts"][0],
            uses_ensd=info["sampler_name"] in ("Euler a", "DPM2 a", "DPM++ 2S a"),
            before_extra=before,
        )
        assert write(info["all_prompts"][0], info["all_negative_prompts"][0], ours) == text, name
        checked += 1
    assert checked > 60


def test_settings_decide_what_is_told():
    plain = fields(Settings())
    assert "RNG" not in plain and "Clip skip" not in plain and "ENSD" not in plain
    changed = Settings().with_overrides(
        {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337, "randn_source": "NV"}
    )
    told = list(fields(changed, uses_ensd=True))
    assert told[-5:] == ["Model", "Clip skip", "ENSD", "RNG", "Version"]
    assert "ENSD" not in fields(changed, uses_ensd=False)
    silent = {"add_model_name_to_info": False, "add_model_hash_to_info": False, "add_version_to_infotext": False}
    assert list(fields(Settings().with_overrides(silent)))[-1] == "Size"
    no_norm = Settings().with_overrides({"emphasis": "No norm"})
    assert "Emphasis" not in fields(no_norm) and fields(no_norm, prompt="(a:1.2)")["Emphasis"] == "No norm"


def test_extras_come_before_the_version_and_unknown_places_are_refused():
    told = list(fields(before_extra={"Variation seed": 1, "Denoising strength": 0.6}, extra={"Eta": 0.0}))
    assert told[-6:] == ["Model", "Variation seed", "Denoising strength", "RNG", "Eta", "Version"]
    with pytest.raises(ValueError, match="no fixed place in an infotext for Eta"):
        fields(before_extra={"Eta": 0.0})


@pytest.mark.parametrize("case", PARSED, ids=[str(n) for n in range(len(PARSED))])
def test_parsing_as_measured(case: dict[str, Any]):
    parsed = parse(case["text"])
    assert parsed == case["parsed"]
    assert {k: type(v) for k, v in parsed.items()} == {k: type(v) for k, v in case["parsed"].items()}


def test_values_survive_the_way_there_and_back():
    values = {"Steps": 1, "Sampler": "Euler", "Seed": 2, "Hires prompt": 'a, "b": \\ c\nd', "Model": "x: y, 日本"}
    parsed = parse(write("p", "n", values))
    assert parsed["Hires prompt"] == values["Hires prompt"] and parsed["Model"] == values["Model"]
    assert quote("plain - text") == "plain - text" and quote("a,b") == '"a,b"'


@given(
    st.text(st.characters(exclude_characters="\r", exclude_categories=("Cs",))),
    st.dictionaries(
        st.sampled_from(["Model", "Hires prompt", "Lora hashes", "Styles"]),
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1).map(lambda text: text.strip() + ","),
    ),
)
def test_any_value_with_a_comma_is_read_as_it_was_written(prompt: str, values: dict[str, str]):
    parsed = parse(write("x" + prompt, "", {"Steps": 1, "Seed": 2, "CFG scale": 7, **values}))
    assert {key: parsed[key] for key in values} == values


@given(st.text(alphabet='ab1 :,"\\\n([<)]-/xS', max_size=300))
def test_any_text_parses(text: str):
    parsed = parse(text)
    assert isinstance(parsed["Prompt"], str) and isinstance(parsed["Negative prompt"], str)
    to_request_fields(parsed)


HOSTILE = {
    "spaces": " " * 200_000 + "x",
    "words": "a " * 100_000,
    "brackets": "<a:" * 66_666,
    "open quotes": 'aa:"' * 50_000,
    "escapes": 'aa:"\\' * 40_000,
    "names": "a:" * 100_000,
    "dashes": "-" * 200_000 + ":",
    "lines": "\n" * 200_000 + "x: y",
    "editing": "[a:" * 66_666,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_ends(name: str):
    with ends():
        to_request_fields(parse(HOSTILE[name]))


def test_sizes_of_the_first_hires_fix():
    parsed = parse(
        "a\nSteps: 1, Sampler: Euler, Seed: 1, Size: 1024x768, First pass size: 512x384, Denoising strength: 0.7"
    )
    assert (parsed["Size-1"], parsed["Size-2"]) == (512, 384)
    assert (parsed["Hires resize-1"], parsed["Hires resize-2"]) == (1024, 768)
    unsaid = parse("a\nSteps: 1, Sampler: Euler, Seed: 1, Size: 128x192, First pass size: 0x0, Denoising strength: 0.7")
    assert (unsaid["Size-1"], unsaid["Size-2"]) == (448, 640)  # as measured with use_old_hires_fix_width_height
    assert (unsaid["Hires resize-1"], unsaid["Hires resize-2"]) == (128, 192)


def test_hypernetworks_once_had_a_field():
    parsed = parse("a\nSteps: 1, Sampler: Euler, Seed: 1, Hypernet: anime, Hypernet strength: 0.5")
    assert parsed["Prompt"] == "a<hypernet:anime:0.5>"
    assert parse("a\nSteps: 1, Sampler: Euler, Seed: 1, Hypernet: anime")["Prompt"] == "a<hypernet:anime:1.0>"


def test_our_own_version_turns_no_old_option_on():
    assert "Downcast alphas_cumprod" not in parse(BASE.replace("v1.10.1", "easel-v0.1.0"))
    assert parse(BASE.replace("v1.10.1", "v1.5.2-3"))["Downcast alphas_cumprod"] is True
    assert "Downcast alphas_cumprod" not in parse(BASE.replace("v1.10.1", "v1.5.2-3"), old_options=False)
