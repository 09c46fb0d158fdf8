import pytest

from modules.generation.foreign.draft import MAX_LORAS, MAX_NOTES, Draft, load, number, stem, whole
from modules.generation.foreign.names import sampler_of, schedule_of
from modules.generation.infotext import parse
from modules.generation.request import MAX_PROMPT


def test_numbers():
    assert [number(value) for value in (7, 7.0, "7", "7.50", 0.123456)] == [7, 7, 7, 7.5, 0.1235]
    for wrong in (True, None, "x", [], float("nan"), float("inf"), "1e5", "--1"):
        with pytest.raises(ValueError, match="is no number"):
            number(wrong)
    with pytest.raises(ValueError, match="is no whole number"):
        whole(1.5)


def test_names_of_files():
    assert stem("a\\b/x.SafeTensors") == "x" and stem("v1.5") == "v1.5"
    with pytest.raises(ValueError, match="is no text"):
        stem(" ")


def test_json_under_limits():
    assert load('{"a": 1}') == {"a": 1}
    for text in (None, "", "7", "x", "{", "[" * 100_000, "[" + "1," * 3_000_000 + "1]"):
        assert load(text) is None


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("euler_ancestral", "Euler a", ""),
        ("k_dpm_2_a", "DPM2 a", ""),
        ("dpmpp_sde_gpu", "DPM++ SDE", ""),
        ("dpmpp_2m_k", "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE", "Karras"),
        ("DPM++ 2M SDE Heun Exponential", "DPM++ 2M SDE Heun", "Exponential"),
        ("uni_pc", "UniPC", ""),
        ("ddim", "DDIM", ""),
        ("heunpp2", "", ""),
        ("dpmpp_2s", "", ""),
    ],
)
def test_samplers_of_everywhere(name: str, sampler: str, schedule: str):
    assert sampler_of(name) == (sampler, schedule)


def test_schedules_of_everywhere():
    assert [schedule_of(name) for name in ("karras", "sgm_uniform", "ddim_uniform", "Align Your Steps", "nope")] == [
        "Karras",
        "SGM Uniform",
        "DDIM",
        "Align Your Steps",
        "",
    ]


def test_a_prompt_cannot_pretend_to_be_a_negative_one():
    draft = Draft("x")
    draft.prompt, draft.negative = "a\n Negative prompt: b", "c"
    draft.fields = {"Steps": 1, "Seed": 2}
    parsed = parse(draft.finish().infotext)
    assert parsed["Prompt"] == "a\nnegative prompt: b" and parsed["Negative prompt"] == "c"


def test_too_little_for_parameters():
    draft = Draft("x")
    draft.prompt, draft.fields = "a", {"Seed": 2}
    assert draft.finish().infotext == "a" and draft.finish().unmapped == ("Seed: 2",)


def test_limits():
    draft = Draft("x")
    draft.prompt = "a" * (MAX_PROMPT + 5)
    for index in range(500):
        draft.note(f"note {index}")
        draft.lora(f"l{index}")
    draft.lora("a:b")
    found = draft.finish()
    assert len(found.unmapped) == MAX_NOTES and found.infotext.count("<lora:") == MAX_LORAS
