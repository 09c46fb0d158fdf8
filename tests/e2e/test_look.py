"""How the page stands there: themes, languages, widths, names for those who do not see it, and how it is served."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Server, ready
from tests.e2e.form import ask_for, box, generate, wait_for_pictures

pytestmark = pytest.mark.e2e


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_dark_follows_the_system_and_the_button_is_remembered(new_page: Callable[..., Any]) -> None:
    page = new_page(color_scheme="dark")
    assert page.locator("body.dark").count() == 1
    dark = background(page)
    page.locator("#easel_theme").click()
    assert page.locator("body.dark").count() == 0
    light = background(page)
    assert light != dark
    page.reload()
    ready(page)
    assert background(page) == light
    page.emulate_media(color_scheme="light")
    page.emulate_media(color_scheme="dark")
    assert background(page) == light


def test_chinese_is_one_click_away_and_back(page: Any) -> None:
    box(page, "prompt").fill("Generate")
    page.locator("#easel_language").click()
    assert page.locator("#txt2img_generate").inner_text() == "生成"
    labels = page.locator("#txt2img_settings [data-testid=block-info]").all_inner_texts()
    assert labels and not any(label.isascii() for label in labels)
    assert page.locator("#easel_state").inner_text() == "就绪"
    assert box(page, "prompt").input_value() == "Generate"
    page.reload()
    ready(page)
    assert page.locator("html").get_attribute("lang") == "zh"
    page.get_by_role("tab", name="PNG Info").click()
    page.get_by_text("把图片拖到这里").wait_for()
    page.locator("#easel_language").click()
    page.get_by_text("Drop a picture here").wait_for()
    page.get_by_role("tab", name="txt2img").click()
    assert page.locator("#txt2img_generate").inner_text() == "Generate"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720), (900, 1000), (400, 860)])
def test_no_width_scrolls_sideways(new_page: Callable[..., Any], width: int, height: int) -> None:
    page = new_page(width, height)
    ask_for(page, "red apple " * 40)
    generate(page)
    wait_for_pictures(page, 1)
    for tab in ("PNG Info", "txt2img"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    button = page.locator("#txt2img_generate").bounding_box()
    assert button["y"] + button["height"] <= height and button["x"] + button["width"] <= width
    if width > 900:
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        stage = page.locator("#easel_stage").bounding_box()
        assert stage["height"] > height * 0.4


def test_one_screen_at_1440_by_900(page: Any) -> None:
    for id in ("txt2img_seed", "txt2img_generate", "easel_stage", "easel_infotext", "txt2img_open_folder"):
        place = page.locator(f"#{id}").bounding_box()
        assert place["y"] >= 0 and place["y"] + place["height"] <= 900, id


def test_every_control_has_a_name_and_can_be_reached(page: Any) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, [role=listbox], [role=progressbar]")]
          .filter((one) => one.checkVisibility({ visibilityProperty: true }))
          .filter((one) => !one.closest(".wire, [aria-hidden=true]"))
          .filter((one) => !one.getAttribute("aria-label") && !one.textContent.trim())
          .filter((one) => !one.labels?.[0]?.textContent.trim())
          .map((one) => one.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    tooltips = page.locator("button.icon-button:visible").evaluate_all("all => all.map((one) => one.title)")
    assert tooltips and all(tooltips)

    box(page, "prompt").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id]').id"))
    assert {"txt2img_neg_prompt", "txt2img_generate", "txt2img_steps", "txt2img_seed", "easel_stage"} <= set(reached)
    outline = page.evaluate("getComputedStyle(document.getElementById('txt2img_generate')).outlineStyle")
    page.locator("#txt2img_neg_prompt textarea").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]") == [
        "txt2img_generate",
        "solid",
    ]
    assert outline == "none"


def test_few_requests_and_all_of_them_here(new_context: Callable[..., Any], server: Server) -> None:
    page = new_context().new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.goto("/")
    ready(page)
    page.wait_for_load_state("load")
    assert all(url.startswith((server.url, "data:")) for url in seen)
    # Events, jobs and status are asked for once the page is there: by then they are counted, or not yet.
    assert len([url for url in seen if not url.startswith(f"{server.url}/api/")]) <= 78
    assert page.evaluate("document.querySelectorAll('*').length") < 800


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/runs",
        "/monitoring",
        "/assets/..%2f..%2findex.html",
        "/easel/x/..%2f..%2fpage.py",
        "/easel/x/nothing.js",
    ],
)
def test_doors_of_gradio_that_nobody_needs_are_shut(page_request: Any, path: str) -> None:
    assert page_request.get(path).status == 404
    assert page_request.post(path).status in (404, 405)


@pytest.fixture
def page_request(new_context: Callable[..., Any]) -> Any:
    return new_context().request


def test_scripts_may_be_kept_for_ever_and_the_document_not(page: Any) -> None:
    document = page.request.get("/")
    assert document.headers["cache-control"] == "no-store"
    script = page.locator('script[src$="/main.js"]').get_attribute("src")
    assert "immutable" in page.request.get(f"/{script}").headers["cache-control"]
    assert "nonce-" in document.headers["content-security-policy"]
