import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.generation.fields import RunFacts, fields_of, refiner_fields, token_merging_fields
from modules.generation.infotext import ORDER, first_pass_size, write
from modules.generation.plan import ImagePlan
from modules.generation.request import (
    MASKED_CONTENTS,
    RESIZE_MODES,
    GenerationRequest,
    Hires,
    Init,
    Mask,
    SoftInpainting,
    known_sampler,
)
from modules.settings.schema import SETTINGS, Settings
from tests.golden import golden_cases

PICTURE = "0" * 64
# What other parts note while a picture is made; their own tests see to it that they do. What remains of an infotext is
# made from the request here.
NOTED = ("Lora hashes", "TI hashes", "Eta", "Eta DDIM", "Sigma churn", "Sigma tmin", "Sigma noise", "Schedule rho")
NOTED += ("Beta schedule alpha", "Beta schedule beta", "Discard penultimate sigma", "NGMS", "NGMS all steps")
NOTED += ("Skip Early CFG", "Pad conds", "Pad conds v0", "Final denoising strength", "Denoising curve")
NOTED += ("SD upscale overlap", "SD upscale upscaler")


def hires_of(asked: dict[str, Any]) -> Hires | None:
    if not asked.get("enable_hr"):
        return None
    resize = (asked.get("hr_resize_x", 0), asked.get("hr_resize_y", 0))
    if asked["override_settings"].get("use_old_hires_fix_width_height"):
        resize = (asked["width"], asked["height"])
    return Hires(
        upscaler=asked["hr_upscaler"],
        denoising_strength=asked["denoising_strength"],
        scale=float(asked.get("hr_scale", 2)),
        resize_width=resize[0],
        resize_height=resize[1],
        steps=asked.get("hr_second_pass_steps", 0),
        sampler=asked.get("hr_sampler_name", ""),
        schedule=asked.get("hr_scheduler", ""),
        prompt=asked.get("hr_prompt", ""),
        negative_prompt=asked.get("hr_negative_prompt", ""),
    )


def init_of(asked: dict[str, Any]) -> Init | None:
    if "init_images" not in asked:
        return None
    soft = asked.get("alwayson_scripts", {}).get("soft inpainting", {}).get("args")
    mask = Mask(
        image=PICTURE,
        blur_x=asked.get("mask_blur", 4),
        blur_y=asked.get("mask_blur", 4),
        content=MASKED_CONTENTS[asked.get("inpainting_fill", 0)],
        invert=bool(asked.get("inpainting_mask_invert", 0)),
        only_masked=asked.get("inpaint_full_res", True),
        padding=asked.get("inpaint_full_res_padding", 0),
        soft=SoftInpainting(**dict(zip(SoftInpainting.model_fields, soft[1:], strict=True))) if soft else None,
    )
    return Init(
        images=(PICTURE,),
        denoising_strength=asked["denoising_strength"],
        resize_mode=RESIZE_MODES[asked.get("resize_mode", 0)] if "mask" not in asked else "Just resize",
        mask=mask if "mask" in asked else None,
    )


def request_of(asked: dict[str, Any], info: dict[str, Any]) -> GenerationRequest:
    width, height = asked["width"], asked["height"]
    if asked["override_settings"].get("use_old_hires_fix_width_height") and asked.get("enable_hr"):
        width, height = first_pass_size(width, height)
    return GenerationRequest(
        prompt=info["all_prompts"][0],
        negative_prompt=info["all_negative_prompts"][0],
        checkpoint="tiny-sd1.safetensors",
        sampler=known_sampler(info["sampler_name"]),
        steps=asked["steps"],
        cfg_scale=float(asked["cfg_scale"]),
        width=width,
        height=height,
        seed=info["all_seeds"][0],
        variation_seed=asked.get("subseed", -1),
        variation_strength=asked.get("subseed_strength", 0),
        seed_resize_width=max(0, asked.get("seed_resize_from_w", 0)),
        seed_resize_height=max(0, asked.get("seed_resize_from_h", 0)),
        hires=hires_of(asked),
        init=init_of(asked),
    )


def settings_of(asked: dict[str, Any]) -> Settings:
    given = dict(asked["override_settings"])
    for name, key in (
        ("initial_noise_multiplier", "initial_noise_multiplier"),
        ("tiling", "tiling"),
        ("eta", "eta_ancestral"),
    ):
        if name in asked:
            given[key] = asked[name]
    return Settings().with_overrides({key: value for key, value in given.items() if key in SETTINGS})


def last_line(text: str) -> dict[str, str]:
    pairs = re.findall(r'([A-Z][\w+ ]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)', text.rsplit("\n", 1)[-1])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def image_of(request: GenerationRequest, info: dict[str, Any], index: int) -> ImagePlan:
    prompt, negative = info["all_prompts"][index], info["all_negative_prompts"][index]
    hires = request.hires
    return ImagePlan(
        index=index,
        batch=0,
        seed=info["all_seeds"][index],
        variation_seed=request.variation_seed + index,
        prompt=prompt,
        negative_prompt=negative,
        hires_prompt=(hires and hires.prompt) or prompt,
        hires_negative_prompt=(hires and hires.negative_prompt) or negative,
    )


def noted_in(told: dict[str, str]) -> dict[str, object]:
    """Last stations first: the order between them must not matter."""
    names = sorted((name for name in told if name in NOTED), key=lambda name: -station_of(name))
    return {name: told[name] for name in names}


def station_of(name: str) -> int:
    return next(number for number, names in enumerate(ORDER) if name in names)


def test_every_measured_infotext_comes_from_its_request(golden: Path):
    checked = 0
    for name, case in golden_cases().items():
        if case["status"] != 200:
            continue
        asked = case["request"]
        info = json.loads(case["info"]) if isinstance(case["info"], str) else case["info"]
        request, settings = request_of(asked, info), settings_of(asked)
        texts = [text for text in case["infotexts"] if text][-len(info["all_seeds"]) :]
        for index, text in enumerate(texts):
            told = last_line(text)
            facts = RunFacts(
                checkpoint_name="tiny-sd1",
                checkpoint_hash="c4346f8673",
                schedule=told["Schedule type"],
                hires_schedule=told.get("Hires schedule type", told["Schedule type"]),
                version="v1.10.1",
                noted=noted_in(told),
            )
            image = image_of(request, info, index)
            if "script_name" in asked:  # loopback goes on counting
                image = replace(image, seed=int(told["Seed"]))
            ours = write(image.prompt, image.negative_prompt, fields_of(request, image, facts, settings))
            assert ours == text, name
            checked += 1
    assert checked > 200


def plain(**changes: Any) -> tuple[GenerationRequest, ImagePlan]:
    request = GenerationRequest(**{"prompt": "a", "seed": 1, "checkpoint": "x", "sampler": "Euler", **changes})
    hires = request.hires
    image = ImagePlan(0, 0, 1, 2, "a", "", (hires and hires.prompt) or "a", (hires and hires.negative_prompt) or "")
    return request, image


def told(facts: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **changes: Any) -> str:
    request, image = plain(**changes)
    all_facts = {
        "checkpoint_name": "m",
        "checkpoint_hash": "h",
        "schedule": "Automatic",
        "version": "v",
        **(facts or {}),
    }
    fields = fields_of(request, image, RunFacts(**all_facts), Settings().with_overrides(settings or {}))
    return write("", "", fields).partition("Model: m, ")[2].removesuffix("Version: v").removesuffix(", ")


def test_all_of_hires_fix_in_its_order():
    hires = Hires(
        upscaler="Latent", steps=5, cfg_scale=4.5, checkpoint="b", sampler="DDIM", prompt="x, y", negative_prompt="n"
    )
    facts = {"hires_schedule": "Karras", "hires_checkpoint": "b [123]", "noted": {"Lora hashes": "l: 1"}}
    assert told(facts, {"img2img_extra_noise": 0.1, "token_merging_ratio": 0.5}, hires=hires) == (
        "Denoising strength: 0.7, Token merging ratio: 0.5, Token merging ratio hr: 0.5, Hires checkpoint: b [123], "
        'Hires sampler: DDIM, Hires CFG Scale: 4.5, Hires prompt: "x, y", Hires negative prompt: n, '
        'Hires schedule type: Karras, Hires upscale: 2, Hires steps: 5, Hires upscaler: Latent, Lora hashes: "l: 1", '
        "Extra noise: 0.1"
    )


def test_what_is_as_in_the_first_pass_is_left_out():
    facts = {"schedule": "Karras", "hires_schedule": "Karras"}
    assert (
        told(facts, hires=Hires(sampler="Euler")) == "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent"
    )


def test_vae_user_and_models_that_see_more():
    facts = {"vae_name": "v.pt", "vae_hash": "0123456789", "user": "ann", "sees_mask": True, "edits": True}
    init = Init(images=(PICTURE,), image_cfg_scale=1.2, denoising_strength=0.5)
    expected = "VAE hash: 0123456789, VAE: v.pt, Denoising strength: 0.5, Conditional mask weight: 1.0"
    assert told(facts, init=init) == expected
    shown = told(facts, {"add_user_name_to_info": True, "add_vae_name_to_info": False}, init=init)
    assert shown.endswith("Version: v, User: ann") and "VAE: " not in shown
    request, image = plain(init=init)
    fields = fields_of(request, image, RunFacts("m", "h", "Automatic", "v", edits=True), Settings())
    assert list(fields)[3:6] == ["CFG scale", "Image CFG scale", "Seed"] and fields["Image CFG scale"] == 1.2


def test_a_blur_of_two_widths_has_no_words():
    init = Init(images=(PICTURE,), mask=Mask(image=PICTURE, blur_x=2, blur_y=8))
    assert told(init=init) == "Denoising strength: 0.75"


def test_ensd_only_where_noise_is_added_later():
    assert told(settings={"eta_noise_seed_delta": 5}, sampler="Euler") == ""
    assert told(settings={"eta_noise_seed_delta": 5}, sampler="Euler a") == "ENSD: 5"
    assert told(settings={"eta_noise_seed_delta": 5, "eta_ancestral": 0.0}, sampler="Euler a") == ""


def test_the_refiner_and_its_pass():
    settings = Settings().with_overrides({"hires_fix_refiner_pass": "both passes"})
    assert refiner_fields("r [1]", 0.8, settings, hires=True) == {
        "Hires refiner": "both passes",
        "Refiner": "r [1]",
        "Refiner switch at": 0.8,
    }
    assert "Hires refiner" not in refiner_fields("r [1]", 0.8, Settings(), hires=True)
    noted = {"NGMS": 1.0, **refiner_fields("r [1]", 0.8, settings, hires=False), "Emphasis": "None", "Mine": 7}
    assert told({"noted": noted}) == "Mine: 7, Emphasis: None, NGMS: 1.0, Refiner: r [1], Refiner switch at: 0.8"


def test_merging_ratios_fall_back():
    settings = Settings().with_overrides({"token_merging_ratio": 0.2, "token_merging_ratio_img2img": 0.4})
    assert token_merging_fields(settings, init=True, hires=False) == {"Token merging ratio": 0.4}
    assert token_merging_fields(settings, init=False, hires=False) == {"Token merging ratio": 0.2}
    assert told() == ""


def test_emphasis_is_told_of_texts_that_have_some_after_prompt_editing():
    settings = Settings().with_overrides({"emphasis": "Ignore"})
    for prompt, emphasised in (("a (b:1.2)", True), ("[red:blue:0.5]", False), ("[a|b]", False), ("[a]", True)):
        request, image = plain()
        image = ImagePlan(0, 0, 1, 2, prompt, "", prompt, "")
        facts = RunFacts("m", "h", "Automatic", "v")
        fields = fields_of(request, image, facts, settings)
        assert ("Emphasis" in fields) is emphasised, prompt
