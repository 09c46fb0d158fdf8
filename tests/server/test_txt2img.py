"""Hires fix and the other fields of txt2img: what A1111's fields become here."""

import pytest

from modules.generation.request import Hires, Refiner
from modules.prompt.styles import Style
from modules.server.errors import ApiError
from modules.server.txt2img import understand
from modules.settings.schema import Settings

ASK = {"width": 128, "height": 192, "seed": 42, "steps": 8}


def understood(**fields):
    return understand({**ASK, **fields}, Settings())


def request_of(**fields):
    return understood(**fields).request


def refused(**fields):
    with pytest.raises(ApiError) as error:
        understood(**fields)
    assert error.value.status == 422 and error.value.detail
    return error.value.detail[0]["field"]


def test_without_enable_hr_there_is_no_second_pass():
    assert request_of(hr_scale=3, hr_upscaler="Latent", denoising_strength=0.5).hires is None


def test_every_field_of_the_second_pass():
    hires = request_of(
        enable_hr=True,
        denoising_strength=0.6,
        hr_scale=1.5,
        hr_upscaler="Lanczos",
        hr_second_pass_steps=12,
        hr_resize_x=192,
        hr_resize_y=256,
        hr_checkpoint_name="other",
        hr_sampler_name="DPM++ 2M",
        hr_scheduler="karras",
        hr_prompt="a green square",
        hr_negative_prompt="red",
    ).hires
    assert hires == Hires(
        upscaler="Lanczos",
        denoising_strength=0.6,
        scale=1.5,
        steps=12,
        resize_width=192,
        resize_height=256,
        checkpoint="other",
        sampler="DPM++ 2M",
        schedule="Karras",
        prompt="a green square",
        negative_prompt="red",
    )


def test_what_is_the_same_as_in_the_first_pass_is_left_out():
    call = understood(
        enable_hr=True,
        hr_checkpoint_name="Use same checkpoint",
        hr_sampler_name="Use same sampler",
        hr_scheduler="Use same scheduler",
    )
    assert call.request.hires == Hires(upscaler="Latent", denoising_strength=0.7, scale=2.0)
    assert call.warnings == ["denoising_strength was not sent; 0.7 is used for hires fix"]


def test_an_old_name_of_a_sampler_brings_its_schedule_into_the_second_pass():
    hires = request_of(enable_hr=True, denoising_strength=0.5, hr_sampler_name="DPM++ SDE Karras").hires
    assert (hires.sampler, hires.schedule) == ("DPM++ SDE", "Karras")


def test_a_first_pass_with_a_size_of_its_own_makes_width_and_height_the_target():
    request = request_of(enable_hr=True, denoising_strength=0.5, firstphase_width=64, firstphase_height=96)
    assert (request.width, request.height) == (64, 96)
    assert (request.hires.resize_width, request.hires.resize_height) == (128, 192)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hr_scale": 0.5}, "hr_scale"),
        ({"hr_scale": 100}, "hr_scale"),
        ({"hr_second_pass_steps": -1}, "hr_second_pass_steps"),
        ({"hr_resize_x": 60}, "hr_resize_x"),
        ({"hr_resize_y": 10**6}, "hr_resize_y"),
        ({"hr_sampler_name": "nope"}, "hr_sampler_name"),
        ({"hr_scheduler": "nope"}, "hr_scheduler"),
        ({"denoising_strength": 1.1}, "denoising_strength"),
        ({"denoising_strength": -0.1}, "denoising_strength"),
        ({"firstphase_width": 64}, "firstphase_height"),
        ({"firstphase_width": 63, "firstphase_height": 64}, "firstphase_width"),
        ({"hr_prompt": None}, "hr_prompt"),
        ({"width": 2048, "height": 2048, "hr_scale": 4}, "request"),
    ],
)
def test_what_cannot_be_a_second_pass_is_refused_by_name(fields, field):
    assert refused(enable_hr=True, **{"denoising_strength": 0.5, **fields}) == field


def test_refiner_styles_variation_and_networks():
    call = understood(
        refiner_checkpoint="other",
        refiner_switch_at=0.5,
        styles=["a", "b"],
        subseed=7,
        subseed_strength=0.3,
        seed_resize_from_w=64,
        seed_resize_from_h=128,
        disable_extra_networks=True,
        tiling=True,
        s_min_uncond=2,
        comments={"x": "y"},
    )
    request = call.request
    assert request.refiner == Refiner(checkpoint="other", switch_at=0.5)
    assert request.styles == ("a", "b") and not request.use_networks
    assert (request.variation_seed, request.variation_strength) == (7, 0.3)
    assert (request.seed_resize_width, request.seed_resize_height) == (64, 128)


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_no_refiner(nothing):
    assert request_of(refiner_checkpoint=nothing, refiner_switch_at=0.5).refiner is None


@pytest.mark.parametrize(("width", "height"), [(-1, -1), (0, 64), (64, -1)])
def test_a_seed_is_resized_from_both_sides_or_not_at_all(width, height):
    request = request_of(seed_resize_from_w=width, seed_resize_from_h=height)
    assert (request.seed_resize_width, request.seed_resize_height) == (0, 0)


@pytest.mark.parametrize("field", ["firstpass_image", "latent_mask"])
def test_pictures_that_cannot_be_sent_are_refused_where_they_are_fields(field):
    if field == "firstpass_image":
        assert refused(firstpass_image="abc") == field
    else:
        assert understood(latent_mask="abc").warnings == ["unknown field latent_mask"]


INFOTEXT = (
    "a dog\nSteps: 3, Sampler: Euler a, CFG scale: 5, Seed: 77, Size: 64x128, Denoising strength: 0.6, "
    "Hires upscale: 1.5, Hires steps: 4, Hires upscaler: Lanczos, Refiner: other [1234567890], Refiner switch at: 0.4"
)


def test_an_infotext_brings_hires_fix_and_refiner():
    call = understand({"infotext": INFOTEXT}, Settings())
    hires, refiner = call.request.hires, call.request.refiner
    assert hires == Hires(upscaler="Lanczos", denoising_strength=0.6, scale=1.5, steps=4)
    assert refiner == Refiner(checkpoint="other [1234567890]", switch_at=0.4)
    assert call.parameters["enable_hr"] is True and call.parameters["hr_upscaler"] == "Lanczos"
    assert understand({"infotext": INFOTEXT, "enable_hr": False}, Settings()).request.hires is None


def test_an_infotexts_styles_are_found_again():
    styles = [Style("round", "{prompt}, round")]
    call = understand({"infotext": INFOTEXT.replace("a dog", "a dog, round")}, Settings(), lambda: styles)
    assert (call.request.prompt, call.request.styles) == ("a dog", ("round",))


@pytest.mark.parametrize(
    "field",
    ["Size: 99999x99999", "Steps: 1000000000", "Hires upscale: 1000", "Hires resize: 999999x8", "CFG scale: 10000"],
)
def test_an_infotext_is_held_to_the_limits_of_the_fields(field):
    text = f"a\nSteps: 3, Sampler: Euler, Seed: 1, Denoising strength: 0.5, Hires upscaler: Latent, {field}"
    with pytest.raises(ApiError) as error:
        understand({"infotext": text}, Settings())
    assert error.value.status == 422


def test_overrides_that_stay():
    sent = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    assert understood(**sent).lasting == {}
    assert understood(**sent, override_settings_restore_afterwards=False).lasting == sent["override_settings"]
