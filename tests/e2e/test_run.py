"""One person and one picture after the other: generate, watch, interrupt, reload, two tabs."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Server, opened, ready
from tests.e2e.form import (
    LONG,
    ask_for,
    box,
    client_of,
    generate,
    infotext,
    jobs_of,
    problems,
    wait_for_pictures,
    wait_for_state,
    wait_for_step,
)

pytestmark = pytest.mark.e2e


def test_a_prompt_becomes_a_picture_and_the_next_one_another(page: Any, server: Server) -> None:
    ask_for(page, "red apple", seed=7)
    generate(page)
    wait_for_pictures(page, 1)
    wait_for_state(page, "Done")
    picture = page.locator("#easel_picture")
    first = picture.get_attribute("src")
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    assert infotext(page).startswith("red apple")
    assert "Seed: 7," in infotext(page) and f"Model: {server.checkpoint}" in infotext(page)
    saved = page.locator("#easel_path").inner_text().removeprefix("Saved as ")
    assert (server.data_dir / saved).read_bytes() == page.request.get(first).body()

    box(page, "seed").fill("8")
    generate(page)
    wait_for_pictures(page, 2)
    page.wait_for_function(
        "before => document.getElementById('easel_picture').getAttribute('src') !== before", arg=first
    )
    assert "Seed: 8," in infotext(page)

    page.locator("#easel_stage").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.getElementById('easel_picture').getAttribute('src') === before", arg=first
    )
    assert "Seed: 7," in infotext(page)
    page.locator("#txt2img_reuse_seed").click()
    assert box(page, "seed").input_value() == "7"
    page.locator("#txt2img_random_seed").click()
    assert box(page, "seed").input_value() == "-1"


def test_a_click_is_answered_before_the_server_answers(page: Any) -> None:
    ask_for(page, "pizza")
    answered = page.evaluate(
        """() => {
          document.getElementById("txt2img_generate").click();
          return document.getElementById("easel_state").textContent;
        }"""
    )
    assert answered == "Sending"
    wait_for_state(page, "Done")


def test_progress_and_preview_while_it_runs_and_nothing_moves(page: Any) -> None:
    page.evaluate(
        """() => {
          window.shift = 0;
          new PerformanceObserver((list) => { for (const one of list.getEntries()) window.shift += one.value; })
            .observe({ type: "layout-shift", buffered: true });
        }"""
    )
    ask_for(page, "sailboat", **LONG | {"batch_count": 1})
    generate(page)
    wait_for_step(page)
    page.wait_for_selector("#easel_stage.preview")
    page.wait_for_function("document.getElementById('easel_eta').textContent.endsWith(' left')")
    assert page.locator("#easel_picture").get_attribute("src").startswith("data:image/jpeg")
    assert page.locator("#txt2img_interrupt").is_enabled() and page.locator("#txt2img_skip").is_enabled()
    bar = page.locator("#txt2img_progress [role=progressbar]")
    assert 0 < int(bar.get_attribute("aria-valuenow")) <= 100
    page.keyboard.press("Escape")
    wait_for_state(page, "Interrupted")
    wait_for_pictures(page, 1)
    assert page.locator("#txt2img_interrupt").is_disabled()
    assert page.evaluate("window.shift") < 0.02


def test_a_reload_finds_the_run_again(page: Any) -> None:
    ask_for(page, "red apple", **LONG)
    generate(page)
    wait_for_step(page)
    before = client_of(page)
    page.reload()
    ready(page)
    wait_for_step(page)
    page.wait_for_selector("#easel_stage.preview")
    assert client_of(page) == before
    assert box(page, "prompt").input_value() == "red apple"
    assert box(page, "steps").input_value() == str(LONG["steps"])
    page.keyboard.press("Escape")
    wait_for_state(page, "Interrupted")
    assert [job["state"] for job in jobs_of(page)] == ["interrupted"]


def test_pictures_of_before_are_there_after_a_reload(page: Any) -> None:
    ask_for(page, "cat face")
    generate(page)
    wait_for_pictures(page, 1)
    wait_for_state(page, "Done")
    source = page.locator("#easel_picture").get_attribute("src")
    page.reload()
    ready(page)
    wait_for_pictures(page, 1)
    page.wait_for_function(
        "before => document.getElementById('easel_picture').getAttribute('src') === before", arg=source
    )
    assert infotext(page).startswith("cat face")


def test_escape_ends_a_run_within_a_step(page: Any) -> None:
    ask_for(page, "pizza", **LONG)
    generate(page)
    wait_for_step(page)
    page.keyboard.press("Escape")
    wait_for_state(page, "Interrupted")
    job = jobs_of(page)[0]
    assert job["state"] == "interrupted"
    assert page.locator("#txt2img_interrupt").is_disabled()


def test_skip_goes_on_with_the_next_picture(page: Any) -> None:
    ask_for(page, "pizza", **LONG)
    generate(page)
    wait_for_step(page)
    page.locator("#txt2img_skip").click()
    page.wait_for_function("document.getElementById('easel_state').textContent.includes('round 2/100')")
    page.locator("#txt2img_interrupt").click()
    wait_for_state(page, "Interrupted")


def test_a_waiting_run_says_so_and_can_be_taken_back(page: Any, new_page: Callable[..., Any]) -> None:
    other = new_page()
    ask_for(other, "sailboat", **LONG)
    generate(other)
    wait_for_step(other)
    ask_for(page, "pizza")
    generate(page)
    wait_for_state(page, "Waiting")
    page.wait_for_function("document.getElementById('easel_queue').textContent === 'Queue 2'")
    page.locator("#txt2img_interrupt").click()
    wait_for_state(page, "Cancelled")
    assert jobs_of(other)[0]["state"] == "running"
    other.keyboard.press("Escape")
    wait_for_state(other, "Interrupted")


def test_two_tabs_keep_their_runs_apart(new_context: Callable[..., Any]) -> None:
    context = new_context()
    first, second = opened(context.new_page()), opened(context.new_page())
    assert client_of(first) != client_of(second)
    for page, prompt in ((first, "red apple"), (second, "pizza")):
        ask_for(page, prompt, steps=30)
        generate(page)
    for page, prompt in ((first, "red apple"), (second, "pizza")):
        wait_for_pictures(page, 1)
        wait_for_state(page, "Done")
        assert infotext(page).startswith(prompt)
        assert page.locator("#easel_film img").count() == 1


def test_a_duplicated_tab_becomes_a_tab_of_its_own(new_context: Callable[..., Any]) -> None:
    context = new_context()
    first = opened(context.new_page())
    copied = client_of(first)
    second = context.new_page()
    second.add_init_script(
        f"if (!window.name) {{ window.name = 'x'; sessionStorage.setItem('easel.client', '{copied}'); }}"
    )
    opened(second)
    second.wait_for_function("copied => sessionStorage.getItem('easel.client') !== copied", arg=copied)
    assert client_of(first) == copied


def test_a_double_click_is_one_run(page: Any) -> None:
    ask_for(page, "red apple")
    page.locator("#txt2img_generate").dblclick()
    wait_for_pictures(page, 1)
    wait_for_state(page, "Done")
    assert len(jobs_of(page)) == 1


def test_text_of_others_is_only_text(page: Any) -> None:
    nasty = '<img src=x onerror="window.__xss=1"> </textarea><script>window.__xss=1</script> {{7*7}} [x](javascript:x)'
    ask_for(page, nasty)
    generate(page)
    wait_for_pictures(page, 1)
    assert infotext(page).startswith(nasty)
    assert page.locator("#easel_picture").get_attribute("alt") == nasty
    page.reload()
    ready(page)
    assert box(page, "prompt").input_value() == nasty
    page.evaluate("text => sessionStorage.setItem('easel.problems', JSON.stringify([text]))", nasty)
    page.reload()
    ready(page)
    assert problems(page) == [nasty]


def test_what_cannot_be_is_said_until_it_is_read(page: Any) -> None:
    ask_for(page, "red apple", width=70)
    generate(page)
    page.wait_for_selector(".problem")
    said = problems(page)
    assert said == ["Width must be a multiple of 8; it was 70."]
    assert jobs_of(page) == []
    page.reload()
    ready(page)
    assert problems(page) == said
    page.get_by_role("button", name="Dismiss").click()
    assert problems(page) == []
    page.reload()
    ready(page)
    assert problems(page) == []


def test_a_refusal_is_told_in_chinese_too(new_page: Callable[..., Any]) -> None:
    page = new_page(locale="zh-CN")
    ask_for(page, "red apple", width=70)
    generate(page)
    page.wait_for_selector(".problem")
    assert problems(page) == ["宽度必须是 8 的倍数，现在是 70。"]


def test_the_picture_opens_beside_the_page(page: Any) -> None:
    ask_for(page, "red apple")
    generate(page)
    wait_for_pictures(page, 1)
    with page.context.expect_page() as other:
        page.locator("#txt2img_open_folder").click()
    other.value.wait_for_load_state()
    assert other.value.url.endswith(page.locator("#easel_picture").get_attribute("src"))
    assert other.value.evaluate("document.images[0].naturalWidth") == 64
