"""The system information on the page: opened from the header, read, copied, closed."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e


def opened(page: Any) -> Any:
    page.locator("#easel_sysinfo_open").click()
    dialog = page.locator("#easel_sysinfo")
    dialog.locator("dd").first.wait_for()
    return dialog


def test_it_is_read_copied_and_closed(new_context: Callable[..., Any], server: Server) -> None:
    context = new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector('html[data-ready] #easel_model[data-state="ready"]')
    assert page.locator("#easel_sysinfo").count() == 0  # made when it is asked for
    dialog = opened(page)
    labels, told = dialog.locator("dt").all_inner_texts(), dialog.locator("dl").inner_text()
    assert {"Versions", "Processor", "Memory", "Device", "Checkpoint", "Flags"} <= set(labels)
    assert "torch " in told and "GiB free" in told and "SD 1" in told
    assert str(server.data_dir) not in told and "--data-dir …" in told
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("Versions: Easel ") and "\nDevice: CPU" in copied
    with page.expect_download() as download:
        dialog.get_by_text("Save as a file").click()
    assert download.value.suggested_filename.startswith("sysinfo-")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    opened(page)
    assert page.locator("#easel_sysinfo").count() == 1
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_in_chinese_on_a_phone(new_page: Callable[..., Any]) -> None:
    page = new_page(400, 860, locale="zh-CN", color_scheme="dark")
    dialog = opened(page)
    labels = dialog.locator("dt").all_inner_texts()
    assert labels and not any(label.isascii() for label in labels)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    place = dialog.bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 400
    assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth")
