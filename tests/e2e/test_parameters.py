"""Hires fix, refiner, seed extras, styles, quick settings: from form to queue, and from an infotext to the form."""

from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.form import (
    ask_for,
    box,
    generate,
    infotext,
    problems,
    size_of_shown,
    wait_for_jobs,
    wait_for_pictures,
    wait_for_setting,
)

pytestmark = pytest.mark.e2e
NASTY = "<img src=x onerror=window.__xss=1>"


def switch(page: Any, id: str) -> None:
    page.locator(f"#{id} input").click()


def test_hires_fix_tells_its_size_and_reaches_the_queue(page: Any) -> None:
    ask_for(page, "red apple", steps=2)
    assert not page.locator("#txt2img_hr_scale").is_visible()
    switch(page, "txt2img_hr-checkbox")
    words = page.locator("#txt2img_hires_size")
    page.wait_for_function("document.querySelector('#txt2img_hires_size').innerText === 'from 64x64 to 128x128'")
    box(page, "hr_scale").fill("1.5")
    page.wait_for_function("document.querySelector('#txt2img_hires_size').innerText === 'from 64x64 to 96x96'")
    box(page, "hr_resize_x").fill("80")
    page.wait_for_function("document.querySelector('#txt2img_hires_size').innerText === 'from 64x64 to 80x80'")
    box(page, "hr_resize_x").fill("0")
    switch(page, "txt2img_subseed_show")
    box(page, "subseed_strength").fill("0.25")
    generate(page)
    (request,) = wait_for_jobs(page, 1)
    hires = request["hires"]
    assert (hires["upscaler"], hires["scale"], hires["denoising_strength"]) == ("Latent", 1.5, 0.7)
    assert (hires["sampler"], hires["schedule"], hires["checkpoint"]) == ("", "", "")
    assert (request["variation_strength"], request["refiner"], request["init"]) == (0.25, None, None)
    wait_for_pictures(page, 1)
    assert words.is_visible() and size_of_shown(page) == [96, 96]


def test_a_refiner_without_a_checkpoint_is_named(page: Any) -> None:
    switch(page, "txt2img_enable-checkbox")
    generate(page)
    page.wait_for_function("document.querySelectorAll('.problem').length === 1")
    assert problems(page) == ["Checkpoint: choose one."]


def test_an_infotext_fills_every_part(page: Any) -> None:
    box(page, "prompt").fill(
        f"a boat {NASTY}\nSteps: 7, Sampler: Euler, Schedule type: Karras, CFG scale: 5.5, Seed: 99, Size: 128x192, "
        "Variation seed: 3, Variation seed strength: 0.4, Denoising strength: 0.6, Clip skip: 2, Hires upscale: 1.5, "
        f'Hires steps: 4, Hires upscaler: Latent (nearest), Hires sampler: DDIM, Mystery: "{NASTY}, x"'
    )
    page.locator("#paste").click()
    page.wait_for_function("document.querySelector('#txt2img_seed input').value === '99'")
    names = ("hr_scale", "hires_steps", "denoising_strength", "hr_upscaler", "subseed", "subseed_strength")
    assert [box(page, name).input_value() for name in names] == ["1.5", "4", "0.6", "Latent (nearest)", "3", "0.4"]
    assert page.locator("#hr_sampler input").input_value() == "DDIM"
    assert page.locator("#txt2img_override_settings .token").inner_text().strip().startswith("Clip skip: 2")
    assert problems(page) == [f"This parameter of the picture is not used here: Mystery: {NASTY}, x."]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.wait_for_function("document.querySelector('#hr_sampler input').value === 'DDIM'")
    assert box(page, "hr_scale").input_value() == "1.5"
    assert page.locator("#txt2img_hr-checkbox input").is_checked()
    page.locator("#txt2img_override_settings .token").wait_for()


def test_styles_are_written_chosen_and_applied(page: Any, server: Server) -> None:
    lists: list[Any] = []  # the answer to the first question comes last
    page.route("**/gradio_api/**", lambda route: route.continue_() if lists else lists.append(route))
    page.locator("#txt2img_styles_edit_button").click()
    page.locator("#txt2img_styles_edit_select").fill(NASTY)
    page.locator("#txt2img_edit_style_prompt").fill("{prompt}, shiny")
    page.locator("#txt2img_edit_style_neg_prompt").fill("dull")
    page.locator("#txt2img_edit_style_save").click()
    page.wait_for_selector("#txt2img_edit_style_delete:not([disabled])")
    page.locator("#txt2img_edit_style_prompt").fill("my own")
    with page.expect_response("**/gradio_api/**"):
        lists[0].continue_()
    assert page.locator("#txt2img_edit_style_prompt").input_value() == "my own"
    page.wait_for_selector("#txt2img_edit_style_delete:not([disabled])")
    assert "shiny" in (server.data_dir / "styles.csv").read_text()
    page.locator("#txt2img_edit_style_close").click()
    ask_for(page, "red apple", steps=2)
    page.locator("#txt2img_styles input").click()
    page.get_by_role("option", name=NASTY).click()
    page.keyboard.press("Escape")
    generate(page)
    (request,) = wait_for_jobs(page, 1)
    assert (request["styles"], request["prompt"]) == ([NASTY], "red apple")
    page.locator("#txt2img_style_apply").click()
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'red apple, shiny'")
    assert box(page, "neg_prompt").input_value() == "dull"
    assert page.locator("#txt2img_styles .token").count() == 0


def test_clip_skip_in_the_header_is_a_setting(page: Any) -> None:
    set_clip_skip(page, 2)
    try:
        ask_for(page, "red apple", steps=2)
        generate(page)
        wait_for_pictures(page, 1)
        assert "Clip skip: 2" in infotext(page)
    finally:
        set_clip_skip(page, 1)


def test_the_second_of_two_quick_changes_counts(page: Any) -> None:
    held: list[Any] = []
    page.route("**/gradio_api/**", lambda route: route.continue_() if held else held.append(route))
    clip_skip = page.locator("#setting_CLIP_stop_at_last_layers input")
    try:
        clip_skip.fill("2")
        page.wait_for_timeout(300)  # it is on its way, and Gradio knows
        clip_skip.fill("3")
        page.wait_for_timeout(300)
        assert held[0].request.post_data_json["data"] == [2]
        held[0].continue_()
        wait_for_setting(page, "CLIP_stop_at_last_layers", "3")
    finally:
        set_clip_skip(page, 1)


def set_clip_skip(page: Any, value: int) -> None:
    page.locator("#setting_CLIP_stop_at_last_layers input").fill(str(value))
    wait_for_setting(page, "CLIP_stop_at_last_layers", str(value))
