from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.fields import RunFacts, fields_of
from modules.generation.infotext import parse, write
from modules.generation.plan import plan
from modules.generation.reading import Reading, renamed_networks, split_sampler, to_request_fields
from modules.generation.request import (
    MASKED_CONTENTS,
    GenerationRequest,
    Hires,
    Init,
    Mask,
    Refiner,
    SoftInpainting,
)
from modules.prompt.styles import Style
from modules.settings.schema import INFOTEXT_SETTINGS, SETTINGS, Settings

PICTURE = "0" * 64
BASE = (
    "a red circle on a blue background\nNegative prompt: blurry, green\nSteps: 8, Sampler: Euler a, Schedule type: "
    "Automatic, CFG scale: 7.0, Seed: 42, Size: 128x192, Model hash: c4346f8673, Model: tiny-sd1, RNG: CPU, "
    "Version: v1.10.1"
)
START = "a\nSteps: 8, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, "


def read(text: str, **options: Any) -> Reading:
    return to_request_fields(parse(text), **options)


def test_what_a_request_is_made_of():
    reading = to_request_fields(parse(BASE))
    assert reading.unmapped == ()
    request = GenerationRequest(**reading.fields)
    assert (request.prompt, request.negative_prompt) == ("a red circle on a blue background", "blurry, green")
    assert (request.steps, request.cfg_scale, request.seed, request.width, request.height) == (8, 7.0, 42, 128, 192)
    assert (request.sampler, request.schedule, request.checkpoint) == ("Euler a", "Automatic", "tiny-sd1 [c4346f8673]")
    assert request.overrides["randn_source"] == "CPU" and request.overrides["CLIP_stop_at_last_layers"] == 1


def test_old_names_of_samplers_are_split():
    fields = to_request_fields(parse("a\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 1, Clip skip: 2")).fields
    assert (fields["sampler"], fields["schedule"]) == ("DPM++ 2M", "Karras")
    assert fields["overrides"]["CLIP_stop_at_last_layers"] == 2


def test_a_prompt_alone_changes_no_setting():
    assert to_request_fields(parse("just a prompt")).fields == {"prompt": "just a prompt", "negative_prompt": ""}


def test_what_has_no_effect_is_told_never_guessed():
    text = (
        "a\nSteps: 1e9, Sampler: Nonesuch, Schedule type: Nope, CFG scale: high, Seed: 5, Size: 64x64, RNG: Dice, "
        "Clip skip: 99, Hires upscaler: <script>, Model: ../../x"
    )
    reading = read(text)
    assert set(reading.fields) == {*KNOWN, "hires"} and reading.fields["hires"] == {**HIRES, "upscaler": "<script>"}
    told = "\n".join(reading.unmapped)
    for part in (
        "Steps: 1e9",
        "Sampler: Nonesuch",
        "Schedule type: Nope",
        "CFG scale: high",
        "RNG: Dice (must be one of",
    ):
        assert part in told
    assert "Clip skip: 99 (must be a whole number from 1 to 12" in told


@pytest.mark.parametrize("key", [key for key in INFOTEXT_SETTINGS.values() if key != "sd_model_checkpoint"])
def test_every_setting_of_an_infotext_acts_or_is_told(key: str):
    info = SETTINGS[key]
    value = info.choices[-1] if info.choices else {"bool": not info.default, "int": 2, "float": 0.5}.get(info.type, "x")
    reading = read(START + f"{info.infotext}: {value}")
    if info.effective:
        assert reading.fields["overrides"][key] == value and reading.unmapped == ()
    else:
        assert reading.unmapped == (f"{info.infotext}: {value} (not supported yet)",)


def test_fields_can_be_left_out():
    parsed = parse(BASE)
    assert "seed" not in to_request_fields(parsed, skip=("Seed", "RNG")).fields


KNOWN = ("prompt", "negative_prompt", "seed", "width", "height", "checkpoint", "overrides")
HIRES = {"resize_width": 0, "resize_height": 0, "checkpoint": "", "prompt": "", "negative_prompt": ""}


def text_of(request: GenerationRequest, settings: Settings | None = None, **facts: Any) -> str:
    """The infotext of a settled request's first picture."""
    image = plan(request).images[0]
    given = {"checkpoint_name": "x", "checkpoint_hash": "123", "schedule": request.schedule, "version": "v", **facts}
    return write(
        image.prompt, image.negative_prompt, fields_of(request, image, RunFacts(**given), settings or Settings())
    )


def request(**changes: Any) -> GenerationRequest:
    given = {"prompt": "a, b", "negative_prompt": "c: d", "checkpoint": "x [123]", "sampler": "Euler", "seed": 7}
    return GenerationRequest(**{**given, **changes})


def again(text: str) -> GenerationRequest:
    """Read back; with pictures, where it started from some."""
    reading = read(text)
    assert reading.unmapped == ()
    fields = {**reading.fields, "overrides": {}}
    if reading.init:
        mask = reading.init.pop("mask")
        fields["init"] = {**reading.init, "images": [PICTURE], "mask": {**mask, "image": PICTURE}}
    return GenerationRequest(**fields)


texts = st.text(
    st.characters(exclude_characters="\r\n#[]()<>", exclude_categories=("Cs", "Zl", "Zp", "Cc")), min_size=1
)
texts = texts.map(str.strip).filter(lambda text: bool(text) and "Negative prompt:" not in text and "\x85" not in text)
parts = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 150),
        "cfg_scale": st.sampled_from([1, 7, 7.5, 30.0]),
        "schedule": st.sampled_from(["Karras", "Automatic", "SGM Uniform"]),
        "refiner": st.builds(Refiner, checkpoint=st.just("r [9]"), switch_at=st.sampled_from([0.5, 1])),
    },
)
variations = st.fixed_dictionaries(
    {
        "variation_seed": st.integers(0, 2**62),
        "variation_strength": st.sampled_from([0.1, 1]),
        "seed_resize_width": st.just(64),
        "seed_resize_height": st.just(72),
    },
)
hires = st.builds(
    Hires,
    upscaler=st.sampled_from(["Latent", "R-ESRGAN 4x+"]),
    denoising_strength=st.sampled_from([0.3, 1]),
    scale=st.sampled_from([1.5, 2]),
    steps=st.integers(0, 9),
    cfg_scale=st.sampled_from([0, 3.5]),
    checkpoint=st.sampled_from(["", "h [1]"]),
    sampler=st.sampled_from(["", "DPM++ 2M"]),
    schedule=st.sampled_from(["", "Exponential"]),
    prompt=texts,
    negative_prompt=texts,
)
soft = st.builds(SoftInpainting, mask_blend_power=st.sampled_from([1, 0.25]), composite_mask_influence=st.just(0.5))
masks = st.builds(
    Mask,
    image=st.just(PICTURE),
    blur_x=st.just(4),
    blur_y=st.just(4),
    content=st.sampled_from(MASKED_CONTENTS),
    invert=st.booleans(),
    only_masked=st.booleans(),
    soft=st.none() | soft,
)
inits = st.builds(Init, images=st.just((PICTURE,)), denoising_strength=st.sampled_from([0.5, 1]), mask=masks)


@given(texts, texts, parts, st.none() | variations, st.none() | hires)
def test_a_txt2img_request_comes_back(
    prompt: str, negative: str, some: dict[str, Any], variation: dict[str, Any] | None, second: Hires | None
):
    asked = request(prompt=prompt, negative_prompt=negative, hires=second, **some, **(variation or {}))
    facts: dict[str, Any] = {"noted": {}}
    if second:
        facts |= {"hires_checkpoint": second.checkpoint, "hires_schedule": second.schedule or asked.schedule}
    if asked.refiner:
        facts["noted"] = {"Refiner": asked.refiner.checkpoint, "Refiner switch at": asked.refiner.switch_at}
    found = again(text_of(asked, **facts))
    if second:
        same = {name for name in ("prompt", "negative_prompt") if getattr(second, name) == getattr(asked, name)}
        asked = asked.model_copy(update={"hires": second.model_copy(update=dict.fromkeys(same, ""))})
    assert found == asked


@given(inits)
def test_an_img2img_request_comes_back(init: Init):
    asked = request(init=init)
    assert again(text_of(asked)) == asked


def test_settings_of_a_run_come_back():
    settings = Settings().with_overrides({"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337})
    assert read(text_of(request(sampler="Euler a"), settings)).fields["overrides"] == {
        "CLIP_stop_at_last_layers": 2,
        "eta_noise_seed_delta": 31337,
        **{key: value for key, value in read(START).fields["overrides"].items() if key != "CLIP_stop_at_last_layers"},
    }
    beta = read(START + "Schedule type: Beta, Beta schedule alpha: 0.5, Beta schedule beta: 0.7").fields["overrides"]
    assert (beta["beta_dist_alpha"], beta["beta_dist_beta"]) == (0.5, 0.7)


def test_old_hires_fix():
    reading = read(
        "a\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 1024x768, First pass size: 512x384, "
        "Denoising strength: 0.7"
    )
    assert (reading.fields["width"], reading.fields["height"]) == (512, 384)
    second = Hires(**reading.fields["hires"])
    assert (second.resize_width, second.resize_height, second.denoising_strength) == (1024, 768, 0.7)
    assert reading.init == {} and reading.unmapped == ()


def test_hires_names_with_a_schedule_inside():
    second = read(START + "Hires upscale: 2, Hires sampler: DPM++ 2M Karras, Denoising strength: 0.7").fields["hires"]
    assert (second["sampler"], second["schedule"]) == ("DPM++ 2M", "Karras")
    assert split_sampler("DPM++ 2M SDE SGM Uniform") == ("DPM++ 2M SDE", "SGM Uniform")
    assert split_sampler("DDIM") == ("DDIM", "") and split_sampler("no such Karras") == ("no such", "Karras")


def test_img2img_without_hires():
    reading = read(START + "Denoising strength: 0.6, Mask blur: 3, Masked content: fill, Image CFG scale: 1.5")
    assert reading.init["denoising_strength"] == 0.6 and reading.init["image_cfg_scale"] == 1.5
    mask = Mask(image=PICTURE, **reading.init["mask"])
    assert (mask.blur_x, mask.blur_y, mask.content, mask.only_masked) == (3, 3, "fill", False)
    assert "hires" not in reading.fields and reading.unmapped == ()
    odd = read(START + "Denoising strength: 0.6, Masked content: soup")
    assert odd.unmapped == ("Masked content: soup (must be one of fill, original, latent noise, latent nothing)",)


def test_styles_are_taken_out_as_the_setting_says():
    styles = [Style("oil", "{prompt}, oil on canvas", "photo"), Style("big", "large", "")]
    text = START.replace("a\n", "a hat, oil on canvas, large\nNegative prompt: blurry, photo\n", 1)

    def found(mode: Any, text: str = text) -> tuple[str, str, Any]:
        fields = read(text, styles=styles, styles_mode=mode).fields
        return fields["prompt"], fields["negative_prompt"], fields.get("styles")

    assert found("Ignore") == ("a hat, oil on canvas, large", "blurry, photo", None)
    assert found("Discard") == ("a hat", "blurry", None)
    assert found("Apply") == found("Apply if any") == ("a hat", "blurry", ("oil", "big"))
    assert found("Apply if any", START) == ("a", "", None) and found("Apply", START) == ("a", "", ())


def test_networks_that_had_fields_of_their_own():
    text = (
        START + "AddNet Enabled: True, AddNet Module 1: LoRA, AddNet Model 1: cat(0123abcd), AddNet Weight A 1: 0.8, "
    )
    text += "AddNet Weight B 1: 0.8, AddNet Module 2: Other, AddNet Model 2: dog(01234567)"
    reading = read(text)
    assert reading.fields["prompt"] == "a\n<lora:cat:0.8>"
    assert reading.unmapped == ("AddNet Model 2: dog(01234567) (only LoRAs are known of this extension)",)


def test_loras_get_the_names_that_they_have_here():
    known = {"aaaaaaaaaaaa": "ours"}
    hashes = "theirs: aaaaaaaaaaaa, other: bbbbbbbbbbbb"
    prompt = "x <lora:theirs:0.5> <lora:other:1> <lora:theirs>"
    assert renamed_networks(prompt, hashes, known.get) == "x <lora:ours:0.5> <lora:other:1> <lora:ours>"
    assert renamed_networks(prompt, "", known.get) == prompt
    text = START.replace("a\n", f"{prompt}\n", 1) + f'Lora hashes: "{hashes}"'
    assert read(text, lora_name=known.get).fields["prompt"] == "x <lora:ours:0.5> <lora:other:1> <lora:ours>"


@pytest.mark.parametrize("version", ["v1.5.0", "v1.10.1", "easel-v0.1.0"])
def test_old_versions_have_old_options(version: str):
    fields = read(BASE.replace("a red", "a [red:blue:3]").replace("v1.10.1", version)).fields
    assert fields["overrides"].get("use_old_scheduling", False) is (version == "v1.5.0")
