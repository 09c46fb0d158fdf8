"""The form itself: keys, counters, small buttons, PNG Info and pasted parameters."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from tests.e2e.conftest import Server, ready
from tests.e2e.form import ask_for, box, choose, generate, infotext, problems, wait_for_pictures, wait_for_state

pytestmark = pytest.mark.e2e


def press(page: Any, *keys: str) -> str:
    for key in keys:
        page.keyboard.press(key)
    return str(box(page, "prompt").input_value())


def selection(page: Any) -> str:
    return str(box(page, "prompt").evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)"))


def test_arrows_weigh_the_word_at_the_cursor_and_undo_takes_it_back(page: Any) -> None:
    box(page, "prompt").click()
    page.keyboard.type("red apple, table")
    for _ in range(len(", table") + 2):
        page.keyboard.press("ArrowLeft")
    assert press(page, "Control+ArrowUp") == "red (apple:1.1), table"
    assert selection(page) == "apple"
    assert press(page, "Control+ArrowUp") == "red (apple:1.2), table"
    assert press(page, "Control+ArrowDown", "Control+ArrowDown") == "red apple, table"
    assert press(page, "Control+ArrowDown") == "red (apple:0.9), table"
    assert press(page, "Control+z") == "red apple, table"
    assert press(page, "Control+z") == "red (apple:1.1), table"


@pytest.mark.parametrize(
    ("text", "up", "expected"),
    [
        ("a «red apple» b", True, "a (red apple:1.1) b"),
        ("a « red apple » b", True, "a  (red apple:1.1)  b"),
        ("a «(red apple:1.1)» b", True, "a (red apple:1.2) b"),
        ("a (red ap«»ple:1.1) b", False, "a red apple b"),
        ("a (red apple:1.«»1) b", True, "a (red apple:1.2) b"),
        ("(a:0.1) «»", False, "(a:0.1) "),
        ("(a«»:0.1)", False, "(a:0)"),
        ("(a«»:0)", False, "(a:0)"),
        ("«猫»", True, "(猫:1.1)"),
        (r"a \(b«»\)", True, r"a \((b:1.1)\)"),
        ("(one), tw«»o", True, "(one), (two:1.1)"),
        ("x«»", True, "(x:1.1)"),
        ("«»", True, ""),
    ],
)
def test_weights(page_of_module: Any, text: str, up: bool, expected: str) -> None:
    start = text.index("«")
    plain = text.replace("«", "").replace("»", "")
    assert (
        page_of_module.evaluate(
            """async ([text, start, end, up]) => {
          const main = document.querySelector('script[src$="/main.js"]').src;
          const { weigh } = await import(main.replace("main.js", "weigh.js"));
          const change = weigh(text, start, end, up);
          return change ? text.slice(0, change.from) + change.insert + text.slice(change.to) : text;
        }""",
            [plain, start, text.index("»") - 1, up],
        )
        == expected
    )


@pytest.fixture(scope="module")
def page_of_module(browser: Any, server: Server) -> Any:
    """One page for what leaves no trace in it."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    page.goto("/")
    yield ready(page)
    context.close()


def test_the_counter_counts_tokens(page: Any) -> None:
    counter = page.locator("#txt2img_token_counter")
    assert counter.inner_text() == "0/75"
    box(page, "prompt").fill("a photo of a cat")
    page.wait_for_function("document.getElementById('txt2img_token_counter').textContent === '5/75'")
    box(page, "prompt").fill(", ".join(["cat"] * 60))
    page.wait_for_function("document.getElementById('txt2img_token_counter').textContent === '119/150'")
    assert page.locator("#txt2img_negative_token_counter").inner_text() == "0/75"


def test_ctrl_enter_generates_from_any_box(page: Any) -> None:
    ask_for(page, "red apple")
    box(page, "seed").press("Control+Enter")
    wait_for_pictures(page, 1)
    wait_for_state(page, "Done")


def test_size_buttons(page: Any) -> None:
    ask_for(page, "", size=512)
    page.get_by_role("button", name="3:2", exact=True).click()
    wide = [int(box(page, name).input_value()) for name in ("width", "height")]
    assert wide[0] % 8 == wide[1] % 8 == 0 and wide == [624, 416]
    page.locator("#txt2img_res_switch_btn").click()
    assert [int(box(page, name).input_value()) for name in ("width", "height")] == wide[::-1]


def test_wheel_turns_only_what_has_the_focus_and_a_double_click_resets(page: Any) -> None:
    steps = box(page, "steps")
    steps.hover()
    page.mouse.wheel(0, -100)
    assert steps.input_value() == "20"
    steps.click()
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('#txt2img_steps input').value === '21'")
    page.locator("#txt2img_steps label").dblclick()
    assert steps.input_value() == "20"


def test_png_info_round_trip(page: Any, server: Server) -> None:
    ask_for(page, "red apple, (round:1.2)", steps=5, seed=1234, cfg_scale=6.5, width=72)
    page.locator("#txt2img_neg_prompt textarea").fill("blue")
    choose(page, "sampling", "Euler a")
    choose(page, "scheduler", "Karras")
    generate(page)
    wait_for_pictures(page, 1)
    written = infotext(page)
    saved = page.locator("#easel_path").inner_text().removeprefix("Saved as ")

    ask_for(page, "something else", steps=9, seed=5, cfg_scale=3, size=128)
    choose(page, "sampling", "DDIM")
    page.get_by_role("tab", name="PNG Info").click()
    page.locator("#easel_drop_file").set_input_files(server.data_dir / saved)
    box_of_info = page.locator("#pnginfo_generation_info textarea")
    page.wait_for_function("document.querySelector('#pnginfo_generation_info textarea').value !== ''")
    assert box_of_info.input_value() == written
    assert page.locator("#easel_drop_picture").evaluate("image => image.naturalWidth") == 72

    page.locator("#txt2img_tab").click()
    page.wait_for_selector("#txt2img_prompt textarea", state="visible")
    page.wait_for_function("document.querySelector('#txt2img_seed input').value === '1234'")
    found = {name: box(page, name).input_value() for name in ("prompt", "neg_prompt", "sampling", "scheduler", "steps")}
    assert found == {
        "prompt": "red apple, (round:1.2)",
        "neg_prompt": "blue",
        "sampling": "Euler a",
        "scheduler": "Karras",
        "steps": "5",
    }
    assert [box(page, name).input_value() for name in ("width", "height", "cfg_scale")] == ["72", "64", "6.5"]

    before = page.locator("#easel_picture").get_attribute("src")
    generate(page)
    wait_for_pictures(page, 2)
    first, second = (page.request.get(one["images"][0]["url"]).body() for one in jobs(page))
    assert first == second and before


def jobs(page: Any) -> list[dict[str, Any]]:
    page.wait_for_function("document.getElementById('easel_state').textContent.startsWith('Done')")
    client = page.evaluate("sessionStorage.getItem('easel.client')")
    found: list[dict[str, Any]] = page.request.get(f"/api/v1/jobs?client={client}").json()
    return found


def test_what_is_no_picture_is_refused_in_words(page: Any) -> None:
    page.get_by_role("tab", name="PNG Info").click()
    page.locator("#easel_drop_file").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": b"<svg onload='window.__xss=1'/>"}
    )
    page.wait_for_selector(".problem")
    assert len(problems(page)) == 1 and "422" not in problems(page)[0]
    assert page.locator("#easel_drop_picture").is_hidden()


def test_pasted_parameters_fill_the_form(page: Any) -> None:
    box(page, "prompt").fill(
        "a boat\nNegative prompt: fog\n"
        "Steps: 7, Sampler: Euler, Schedule type: Karras, CFG scale: 5.5, Seed: 99, Size: 128x192"
    )
    page.locator("#paste").click()
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'a boat'")
    names = ("neg_prompt", "steps", "sampling", "scheduler", "cfg_scale", "seed", "width", "height")
    assert [box(page, name).input_value() for name in names] == [
        "fog",
        "7",
        "Euler",
        "Karras",
        "5.5",
        "99",
        "128",
        "192",
    ]


def test_parameters_that_are_wrong_are_named_and_the_others_taken(page: Any) -> None:
    box(page, "prompt").fill("a boat\nSteps: 1000000, Sampler: Nonsense, CFG scale: 5, Seed: 99, Size: 99999x128")
    page.locator("#paste").click()
    page.wait_for_function("document.querySelectorAll('.problem').length === 3")
    assert [box(page, name).input_value() for name in ("steps", "sampling", "seed", "height")] == [
        "20",
        "DPM++ 2M",
        "99",
        "128",
    ]


def test_parameters_of_the_shown_picture_can_be_used_again(page: Any) -> None:
    ask_for(page, "sailboat", seed=31)
    generate(page)
    wait_for_pictures(page, 1)
    wait_for_state(page, "Done")
    ask_for(page, "pizza", seed=32, steps=6)
    page.get_by_role("button", name="Use these parameters").click()
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'sailboat'")
    assert [box(page, name).input_value() for name in ("seed", "steps")] == ["31", "4"]


def test_copy_puts_the_parameters_on_the_clipboard(new_page: Callable[..., Any]) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    ask_for(page, "cat face")
    generate(page)
    wait_for_pictures(page, 1)
    page.get_by_role("button", name="Copy parameters").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == infotext(page)


def test_words_of_the_starter_are_offered(page: Any, server: Server) -> None:
    if server.checkpoint != "starter":
        pytest.skip("only the starter comes with a list of words")
    page.get_by_role("button", name="Words", exact=True).click()
    page.get_by_role("option", name="pizza", exact=True).click()
    assert box(page, "prompt").input_value() == "pizza"
    page.get_by_role("option", name="rose", exact=True).click()
    assert box(page, "prompt").input_value() == "pizza, rose"
    page.keyboard.press("Escape")
    page.locator("#txt2img_words").wait_for(state="hidden")
    page.get_by_role("button", name="Words", exact=True).click()
    page.locator("#txt2img_words").wait_for(state="visible")
    page.locator("#txt2img_gallery").click(position={"x": 400, "y": 40})  # a click elsewhere closes it too
    page.locator("#txt2img_words").wait_for(state="hidden")


def test_surprise_me_writes_a_prompt_that_the_starter_knows(page: Any, server: Server) -> None:
    if server.checkpoint != "starter":
        pytest.skip("only the starter comes with a list of words")
    file = Path(__file__).parents[2] / "models" / "Stable-diffusion" / "starter.words.txt"
    listed = set(file.read_text("utf-8").splitlines())
    ask_for(page, "my own words")
    seen = set()
    for _ in range(12):
        before = box(page, "prompt").input_value()
        page.get_by_role("button", name="Surprise me").click()
        written = box(page, "prompt").input_value()
        assert written != before
        word, _, addition = written.partition(", ")
        assert word.isascii() and word in listed
        assert not addition or f"+ {addition}" in listed
        seen.add(word)
    assert len(seen) > 1
    page.evaluate("Math.random = () => 0.2")  # the second fifth of the words, and an addition
    page.get_by_role("button", name="Surprise me").click()
    assert re.fullmatch(r"[^,]+, blue background", box(page, "prompt").input_value())
    page.locator("#easel_language").click()
    page.get_by_role("button", name="随便来一个").first.click()
    word, addition = box(page, "prompt").input_value().split("，")
    assert not word.isascii() and word in listed and f"+ {addition}" in listed
    page.locator("#easel_language").click()
    box(page, "prompt").focus()
    for _ in range(14):
        page.keyboard.press("Control+z")
    assert box(page, "prompt").input_value() == "my own words"


def test_png_info_of_another_programs_picture(page: Any, server: Server, tmp_path: Path) -> None:
    swarm = {"prompt": "a dog", "steps": 5, "seed": 7, "cfgscale": 3.5, "width": 64, "height": 64, "odd <b>": "x"}
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", json.dumps({"sui_image_params": swarm}))
    Image.new("RGB", (8, 8)).save(tmp_path / "swarm.png", pnginfo=chunks)
    page.get_by_role("tab", name="PNG Info").click()
    page.locator("#easel_drop_file").set_input_files(tmp_path / "swarm.png")
    page.wait_for_selector("#easel_foreign", state="visible")
    assert "SwarmUI" in page.locator("#easel_foreign_program").inner_text()
    assert page.locator("#easel_foreign_list li").all_inner_texts() == ["odd <b>: x"]
    assert page.locator("#pnginfo_generation_info textarea").input_value().startswith("a dog\nSteps: 5")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    page.locator("#easel_drop_file").set_input_files(tmp_path / "plain.png")
    page.wait_for_selector("#easel_foreign", state="hidden")
