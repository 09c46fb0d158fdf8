"""The tab Models, in front of a server whose hub is on this machine: by keyboard, in both languages, narrow too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.app import App
from modules.library.downloads.find import Hubs
from modules.runtime.paths import paths_from
from modules.server.api import create_api
from modules.server.gate import Gate
from modules.web.page import mount_page
from tests.e2e.conftest import CHROMIUM, Watch, ready
from tests.e2e.form import box, wait_for_setting
from tests.jobs.scene import Painter, checkpoint_file, flags_for
from tests.library.downloads.hub import Hub, hubs, status, stops_after
from tests.library.downloads.shelves import civitai_model, lora, repository, safetensors_of
from tests.server.served import Served

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

MARKUP = "<img src=x onerror=\"window.__xss='title'\">"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs() as (one,):
        yield one


@pytest.fixture
def open_page(browser: Any, hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The page of a server of its own; a request elsewhere or an error in its console fails the test."""
    made: list[tuple[Served, Any, Watch]] = []

    def begin(*flags: str, **options: Any) -> Any:
        checkpoint_file(tmp_path / "models" / "Stable-diffusion" / "plain.safetensors")
        parsed = flags_for(tmp_path, *flags)
        app = App(
            paths_from(parsed, root=tmp_path),
            parsed,
            lambda flags, report: Painter(),
            hubs=Hubs(hub.url, hub.url),
            local=frozenset({hub.host}),
        )
        app.start()
        api = create_api(app)
        mount_page(api, app)
        served = Served(Gate(api), app)
        url = f"http://127.0.0.1:{served.port}"
        context = browser.new_context(base_url=url, locale="en-US", **options)
        watch = Watch(url, [])
        context.on("page", watch.follow)
        made.append((served, context, watch))
        page = context.new_page()
        page.goto("/")
        ready(page).get_by_role("tab", name="Models").click()
        page.wait_for_selector("#easel_download_what")
        return page

    yield begin
    for served, context, watch in made:
        marks = [page.evaluate("window.__xss") for page in context.pages]
        context.close()
        served.close()
        assert watch.faults == [] and not any(marks)


def ask(page: Any, what: str) -> None:
    page.fill("#easel_download_what", what)
    page.keyboard.press("Enter")


def test_from_a_pasted_link_to_the_list_by_keyboard(open_page: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    civitai_model(hub, name=MARKUP, trainedWords=[MARKUP], baseModel=MARKUP)
    page = open_page()
    ask(page, "https://civitai.com/models/4384")
    page.wait_for_selector("#easel_download_found:not([hidden])")
    assert page.locator("#easel_download_found h3").inner_text() == "Dream"
    assert MARKUP in page.locator("#easel_download_found .words").inner_text()
    page.wait_for_function("document.querySelector('#easel_download_preview').naturalWidth > 0")
    assert page.evaluate("document.activeElement.dataset.do") == "start"
    page.keyboard.press("Enter")
    page.wait_for_selector("#easel_download_list li[data-state=done]")
    assert (tmp_path / "models/Lora/dream.safetensors").read_bytes() == lora()
    assert page.evaluate("document.activeElement.id") == "easel_download_what"
    page.get_by_role("button", name="Add to the prompt: Lora/dream.safetensors").click()
    page.get_by_text("dream was added to the prompt of txt2img").wait_for()
    assert box(page, "prompt").input_value() == f"<lora:dream:1> {MARKUP}"


def test_a_checkpoint_that_came_stands_in_the_header_and_is_used_by_its_button(
    open_page: Callable[..., Any], hub: Hub, tmp_path: Path
) -> None:
    shapes = {"model.diffusion_model.x": (2,), "first_stage_model.x": (2,), "cond_stage_model.x": (2,)}
    repository(hub, "org/x", {"fresh.safetensors": safetensors_of(shapes)})
    page = open_page()
    ask(page, "org/x")
    page.locator("[data-do=start]").click()
    page.wait_for_selector("#easel_download_list li[data-state=done]")
    page.locator("#setting_sd_model_checkpoint input").click()
    page.get_by_role("option", name="fresh.safetensors").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Choose: Stable-diffusion/fresh.safetensors").click()
    page.get_by_text("fresh is chosen").first.wait_for()
    page.wait_for_function("document.querySelector('#setting_sd_model_checkpoint input').value === 'fresh.safetensors'")
    wait_for_setting(page, "sd_model_checkpoint", "fresh")
    (tmp_path / "models" / "Stable-diffusion" / "fresh.safetensors").unlink()
    page.locator("#easel_browser_tools [data-do=refresh]").click()
    page.get_by_role("button", name="Choose: Stable-diffusion/fresh.safetensors").click()
    page.get_by_text("It cannot be used any more").wait_for()


def test_what_was_asked_for_may_come_before_the_list(open_page: Callable[..., Any], hub: Hub) -> None:
    repository(hub, "org/x", {"x.safetensors": lora()})
    page = open_page()
    held: list[Any] = []
    hold = True
    lists = lambda route: held.append(route) if hold and route.request.method == "GET" else route.continue_()  # noqa: E731
    page.route("**/api/v1/downloads", lists)
    page.reload()
    ready(page).get_by_role("tab", name="Models").click()
    with page.expect_response("**/resolve"):
        ask(page, "org/x")
    assert held
    hold = False
    for route in held:
        route.continue_()
    page.wait_for_function("document.activeElement.dataset.do === 'start'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#easel_download_list li[data-state=done]")


def test_pause_go_on_and_what_fails(open_page: Callable[..., Any], hub: Hub) -> None:
    repository(hub, "org/x", {"x.safetensors": lora()})
    page = open_page()
    page.set_viewport_size({"width": 390, "height": 860})
    ask(page, "org/x")
    page.wait_for_selector("#easel_download_found:not([hidden])")
    hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [stops_after(100), status(401)]
    page.locator("[data-do=start]").click()
    page.get_by_role("button", name="Pause: Lora/x.safetensors").click()
    page.wait_for_selector("#easel_download_list li[data-state=paused]")
    page.get_by_role("button", name="Go on: Lora/x.safetensors").click()
    page.wait_for_selector("#easel_download_list li[data-state=failed]")
    assert "wants a login" in page.locator("#easel_download_list p").inner_text()
    assert page.locator("#easel_download_keys").get_attribute("open") is not None
    key = page.get_by_label("Hugging Face")
    key.fill("canary")
    key.press("Enter")
    page.wait_for_selector("#easel_download_keys input[placeholder='a key is set']")
    assert key.input_value() == "" and "canary" not in page.content()
    page.locator("#easel_language").click()
    page.get_by_text("要求登录才能下载此文件").wait_for()
    ask(page, "http://example.com/x")
    page.get_by_text("只下载 https 链接，不支持 http:").wait_for()
    page.get_by_role("button", name="继续: Lora/x.safetensors").click()
    page.get_by_text("已完成").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.querySelectorAll('#easel_downloads *').length") < 90


def test_other_machines_are_told_how_to_allow_it(open_page: Callable[..., Any]) -> None:
    page = open_page("--listen")
    page.get_by_text("--enable-downloads").wait_for()
    assert page.locator("#easel_download_what").is_disabled()
