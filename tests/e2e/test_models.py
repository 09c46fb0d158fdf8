"""The cards of the tab Models: found, used, described; foreign text stays text; by keyboard, in Chinese, narrow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import CHROMIUM
from tests.e2e.form import box, wait_for_setting
from tests.e2e.test_downloads import MARKUP
from tests.e2e.test_downloads import hub as hub
from tests.e2e.test_downloads import open_page as open_page
from tests.jobs.scene import checkpoint_file
from tests.library.downloads.shelves import lora, safetensors_of

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """Seventy of them: more than come at once."""
    folder = tmp_path / "models" / "Lora"
    (folder / "styles").mkdir(parents=True)
    for number in range(70):
        place = folder / "styles" if number % 7 == 0 else folder
        (place / ("quill" if number == 1 else f"ink {number:02}")).with_suffix(".safetensors").write_bytes(lora())
    sidecar = {"activation text": "ink drawing", "preferred weight": 0.8, "notes": MARKUP, "theirs": 1}
    (folder / "quill.json").write_text(json.dumps(sidecar))
    Image.new("RGB", (64, 64), "red").save(folder / "quill.preview.png")
    (folder / "broken.safetensors").write_bytes(b"<html>please log in</html>")
    return folder


def cards(page: Any, kind: str = "lora", search: str = "") -> Any:
    """The cards that fit, once they are there."""
    page.select_option("#easel_browser_tools [name=kind]", kind)
    page.fill("#easel_browser_tools [name=search]", search)
    of_kind = f"all.every((card) => card.dataset.kind === '{kind}'"
    fits = f"{of_kind} && card.querySelector('b').textContent.includes('{search}'))"
    all_cards = "[...document.querySelectorAll('#easel_cards .card')]"
    page.wait_for_function(f"() => {{ const all = {all_cards}; return all.length && {fits}; }}")
    return page.locator("#easel_cards .card")


def said(page: Any, text: str) -> None:
    page.wait_for_function(f"document.getElementById('easel_browser_told').textContent === {json.dumps(text)}")


def test_a_click_puts_a_network_into_the_prompt_and_takes_it_out(open_page: Callable[..., Any], loras: Path) -> None:
    page = open_page()
    box(page, "prompt").evaluate("e => { e.value = 'a cat'; e.dispatchEvent(new Event('input')); }")
    card = cards(page, search="quill").first
    page.wait_for_function("document.querySelector('#easel_cards img').naturalWidth > 0")
    card.locator(".use").click()
    said(page, "quill was added to the prompt of txt2img")
    assert box(page, "prompt").input_value() == "a cat <lora:quill:0.8> ink drawing"
    card.locator(".use").click()
    said(page, "quill was taken out of the prompt of txt2img")
    assert box(page, "prompt").input_value() == "a cat"


@pytest.mark.parametrize("trigger", ["", "ghost", "ghost, in fog"])
def test_an_embedding_whose_trigger_is_its_name_is_written_once(
    open_page: Callable[..., Any], tmp_path: Path, trigger: str
) -> None:
    file = tmp_path / "embeddings" / "ghost.safetensors"
    file.parent.mkdir()
    file.write_bytes(safetensors_of({"emb_params": (2, 768)}))
    file.with_suffix(".json").write_text(json.dumps({"activation text": trigger}))
    page = open_page()
    box(page, "prompt").evaluate("e => { e.value = 'a cat'; e.dispatchEvent(new Event('input')); }")
    use = cards(page, "embedding", search="ghost").first.locator(".use")
    use.click()
    said(page, "ghost was added to the prompt of txt2img")
    assert box(page, "prompt").input_value() == f"a cat {trigger or 'ghost'}"
    box(page, "prompt").evaluate("e => { e.value += ' at night'; e.dispatchEvent(new Event('input')); }")
    use.click()
    said(page, "ghost was taken out of the prompt of txt2img")
    assert box(page, "prompt").input_value() == "a cat at night"


def test_what_is_known_is_shown_as_text_and_notes_are_kept(open_page: Callable[..., Any], loras: Path) -> None:
    page = open_page()
    cards(page, search="quill").first.locator(".use").focus()
    page.keyboard.press("i")
    page.wait_for_selector("#easel_model_details[open]")
    dialog = page.locator("#easel_model_details")
    assert dialog.locator("[name=notes]").input_value() == MARKUP
    assert "SD 1.x" in dialog.locator(".look .facts").inner_text()
    dialog.locator("[name=preferred_weight]").fill("0.5")
    dialog.locator("[data-do=use]").click()
    said(page, "quill was added to the prompt of txt2img")
    assert box(page, "prompt").input_value() == "<lora:quill:0.5> ink drawing"
    kept = json.loads((loras / "quill.json").read_text())
    assert (kept["preferred weight"], kept["notes"], kept["theirs"]) == (0.5, MARKUP, 1)


def test_cards_come_as_they_are_needed_and_a_broken_file_says_why(open_page: Callable[..., Any], loras: Path) -> None:
    page = open_page()
    cards(page)
    page.wait_for_function("document.querySelectorAll('#easel_cards .card').length === 60")
    page.locator("#easel_browser_end").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('#easel_cards .card').length === 71")
    broken = page.locator(".card", has_text="broken")
    assert "HTML page" in (broken.text_content() or "")
    broken.locator(".use").click()
    page.wait_for_selector("#easel_model_details[open]")
    assert not page.locator("#easel_model_details [data-do=use]").is_visible()
    page.keyboard.press("Escape")
    page.select_option("#easel_browser_tools [name=folder]", "styles")
    page.wait_for_function("document.querySelectorAll('#easel_cards .card').length === 10")
    page.locator("#easel_browser [data-do=duplicates]").click()
    page.wait_for_function("document.getElementById('easel_browser_told').textContent.startsWith('More than once: 1;')")


def test_a_checkpoint_is_chosen_by_its_card(open_page: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint_file(tmp_path / "models" / "Stable-diffusion" / "other.safetensors", shape=8)
    page = open_page()
    cards(page, "checkpoint").filter(has_text="other").locator(".use").click()
    said(page, "other is chosen")
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('other')")
    wait_for_setting(page, "sd_model_checkpoint", "other")


def test_a_chosen_checkpoint_that_goes_leaves_the_list(open_page: Callable[..., Any], tmp_path: Path) -> None:
    other = tmp_path / "models" / "Stable-diffusion" / "very other.safetensors"
    checkpoint_file(other, shape=8)
    page = open_page()
    cards(page, "checkpoint").filter(has_text="other").locator(".use").click()
    wait_for_setting(page, "sd_model_checkpoint", "very other")
    options = page.locator("#setting_sd_model_checkpoint [role=option]")
    assert options.count() == 0
    page.locator("#setting_sd_model_checkpoint input").click()
    options.nth(1).wait_for()
    other.unlink()
    with page.expect_response("**/folders?kind=checkpoint"):  # the cards hear of it, as the header does
        pass
    page.wait_for_timeout(500)
    assert options.count() == 2  # nothing moves in an open list
    page.locator("#easel_browser_tools [name=search]").focus()
    shown = "document.querySelector('#setting_sd_model_checkpoint input').value"
    page.wait_for_function(f"{shown} === 'plain.safetensors'")
    page.locator("#setting_sd_model_checkpoint input").click()
    page.wait_for_function("document.querySelectorAll('#setting_sd_model_checkpoint [role=option]').length === 1")


def test_keyboard_chinese_and_a_narrow_window(open_page: Callable[..., Any], loras: Path) -> None:
    page = open_page()
    page.set_viewport_size({"width": 760, "height": 900})
    page.locator("#easel_language").click()
    found = cards(page)
    found.first.locator(".use").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.querySelector('b').textContent") == "ink 00"
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector("#easel_model_details[open]")  # the first is the broken one
    assert page.locator("#easel_model_details [data-do=close]").inner_text() == "关闭"
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") <= 760
    assert page.locator("#easel_browser_end").inner_text().startswith("71 个中的 ")


def test_a_chosen_checkpoint_that_is_gone_is_told_in_the_pages_language(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"sd_model_checkpoint": "gone.safetensors"}))
    page = open_page()
    page.locator(".problem").get_by_text("plain.safetensors is used until another one is chosen.").wait_for()
    assert page.locator("#setting_sd_model_checkpoint input").input_value() == "plain.safetensors"
    page.locator("#easel_language").click()
    page.reload()
    told = "无法使用所选的大模型：没有大模型 'gone.safetensors'。在选用其他模型之前使用 plain.safetensors。"
    page.locator(".problem").get_by_text(told).wait_for()
