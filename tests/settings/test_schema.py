import csv
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.settings.schema import INFOTEXT_SETTINGS, SECRETS, SETTINGS, SettingError, Settings, refuse_protected
from tests.golden import GOLDEN, REPOSITORY

FACTS = GOLDEN.parent / "facts" / "settings.tsv"


def test_one_flat_namespace_of_typed_values():
    settings = Settings()
    assert settings.randn_source == "GPU"
    assert settings.samples_format == "png"
    assert settings.directories_filename_pattern == "[date]"
    with pytest.raises(ValueError, match="frozen"):
        settings.randn_source = "CPU"


def test_every_setting_says_what_it_is():
    for key, info in SETTINGS.items():
        assert info.help.endswith((".", "?")), key
        assert info.section and info.section_title and info.type in ("bool", "int", "float", "str", "list"), key
        assert Settings().with_overrides({key: info.default}) == Settings(), key


def test_defaults_types_ranges_and_infotext_names_are_those_of_a1111():
    if not FACTS.is_file():
        pytest.skip(f"no facts at {FACTS}")
    with FACTS.open(encoding="utf-8", newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    # A1111 has none of these
    ours_alone = {
        "ddpm_variance",
        "step_caching",
        "torch_compile",
        "civitai_api_key",
        "huggingface_token",
        "model_trees",
    }
    ours_alone |= {"sd_text_encoders", "add_attention_to_infotext", "decode_beside_sampling", "torch_compile"}
    # Theirs opens URLs that a request names; theirs keeps one checkpoint, and has no 0 for "as many as fit".
    ours_on_purpose = {"api_enable_requests", "sd_checkpoints_limit"}
    for key, info in SETTINGS.items():
        if key in ours_alone:
            assert key not in rows
            continue
        row = rows[key]
        if key not in ours_on_purpose:
            assert info.default == json.loads(row["default"]), key
        assert (info.infotext or "") == row["infotext"], key
        if row["type"] != "NoneType":
            assert info.type == row["type"], key
        if row["component"] == "Slider" and key not in ours_on_purpose:
            limits = json.loads(row["range_or_choices"])
            assert (info.minimum, info.maximum, info.step) == (limits["minimum"], limits["maximum"], limits["step"]), (
                key
            )
        if row["component"] == "Radio" and info.choices:
            assert list(info.choices) == json.loads(row["range_or_choices"])["choices"], key


def test_what_claims_an_effect_is_read_somewhere():
    """Only then may page and docs offer it; whoever makes a setting work takes its `effective=False` away."""
    sources = [p for kind in ("*.py", "*.js") for p in (REPOSITORY / "modules").rglob(kind) if p.name != "schema.py"]
    code = "\n".join(path.read_text("utf-8") for path in (*sources, REPOSITORY / "webui.py"))
    read = set(re.findall(r"""(?:[a-z]\.|["'])([A-Za-z_0-9]+)\b""", code))
    assert [key for key, info in SETTINGS.items() if info.effective and key not in read] == []


def test_overrides_make_a_new_snapshot():
    settings = Settings()
    changed = settings.with_overrides({"randn_source": "CPU", "eta_noise_seed_delta": 31337})
    assert (changed.randn_source, changed.eta_noise_seed_delta) == ("CPU", 31337)
    assert settings.randn_source == "GPU"
    assert changed.overridden() == {"randn_source": "CPU", "eta_noise_seed_delta": 31337}


def test_whole_floats_are_integers():
    assert Settings().with_overrides({"n_rows": 3.0}).n_rows == 3
    assert isinstance(Settings().with_overrides({"n_rows": 3.0}).n_rows, int)
    assert Settings().with_overrides({"eta_ddim": 1}).eta_ddim == 1.0


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"randn_sorce": "CPU"}, "there is no such setting; did you mean 'randn_source'?"),
        ({"randn_source": "cpu"}, "must be one of GPU, CPU, NV, got 'cpu'"),
        ({"n_rows": 17}, "must be a whole number from -1 to 16, got 17"),
        ({"n_rows": True}, "must be a whole number from -1 to 16, got True"),
        ({"n_rows": 1.5}, "must be a whole number from -1 to 16, got 1.5"),
        ({"n_rows": 10**5000}, "got a huge number"),
        ({"eta_ddim": float("nan")}, "must be a number from 0 to 1, got nan"),
        ({"rho": float("inf")}, "must be a number from 0 to 1000, got inf"),
        ({"samples_save": 1}, "must be true or false, got 1"),
        ({"samples_save": "true"}, "must be true or false, got 'true'"),
        ({"samples_format": "py"}, "must be one of png, jpg, jpeg, webp, avif, got 'py'"),
        ({"outdir_samples": None}, "must be text, got None"),
        ({"hidden_tabs": "Train"}, "must be a list of text, got 'Train'"),
        ({"keyedit_delimiters_whitespace": ["Nothing"]}, "must be a list of Tab, Carriage Return, Line Feed"),
    ],
)
def test_what_cannot_be_is_named(mapping: dict[str, Any], sentence: str):
    with pytest.raises(SettingError) as caught:
        Settings().with_overrides(mapping)
    assert sentence in str(caught.value)
    assert caught.value.key == next(iter(mapping))
    assert len(str(caught.value)) < 400


def test_a_bad_value_among_good_ones_changes_nothing():
    settings = Settings()
    with pytest.raises(SettingError, match="n_rows"):
        settings.with_overrides({"randn_source": "CPU", "n_rows": 99})
    assert settings == Settings()


@given(
    st.sampled_from(sorted(SETTINGS)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
)
def test_any_value_is_taken_or_refused_with_a_sentence(key: str, value: object):
    try:
        settings = Settings().with_overrides({key: value})
    except SettingError as error:
        assert key in str(error) and "must be" in str(error)
    else:
        assert getattr(settings, key) == value


def test_paths_and_security_are_not_for_http():
    for key in ("outdir_samples", "outdir_txt2img_grids", "api_enable_requests", "disabled_extensions"):
        with pytest.raises(SettingError, match="not over HTTP") as caught:
            refuse_protected({"randn_source": "CPU", key: "/etc"})
        assert caught.value.protected and caught.value.key == key
    refuse_protected({"randn_source": "CPU", "unknown": 1})
    paths = {key for key, info in SETTINGS.items() if info.path}
    assert paths == {key for key in SETTINGS if key.startswith("outdir_")} | {"model_trees"}


def test_secrets_are_told_to_nobody():
    settings = Settings().with_overrides({"civitai_api_key": " canary ", "huggingface_token": "hf_canary"})
    assert settings.civitai_api_key == "canary" and {"civitai_api_key", "huggingface_token"} == SECRETS
    assert "canary" not in f"{settings.told()}{settings.overridden()}"
    for wrong in ("two words", "line\nbreak", "x" * 600, "schlüssel", 7):
        with pytest.raises(SettingError) as caught:
            settings.with_overrides({"civitai_api_key": wrong})
        assert str(wrong) not in str(caught.value) and caught.value.value == "…"


def test_infotext_names_lead_to_their_settings():
    assert INFOTEXT_SETTINGS["RNG"] == "randn_source"
    assert INFOTEXT_SETTINGS["Clip skip"] == "CLIP_stop_at_last_layers"
    assert len(INFOTEXT_SETTINGS) == sum(info.infotext is not None for info in SETTINGS.values())
