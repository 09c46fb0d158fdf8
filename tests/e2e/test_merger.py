"""The tab Checkpoint Merger as its users have it: choose, merge, be refused, find the result."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.e2e.conftest import Server
from tests.e2e.form import open_tab, problems
from tests.tiny import save_tiny

pytestmark = pytest.mark.e2e


@pytest.fixture
def models(server: Server) -> Iterator[Path]:
    folder = server.data_dir / "models" / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    for seed, name in enumerate(("meadow", "harbour"), start=1):
        save_tiny(folder, f"{name}.safetensors", seed)
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


@pytest.fixture
def merger(page: Any, models: Path) -> Iterator[Any]:
    open_tab(page, "Checkpoint Merger")
    page.locator("#refresh_checkpoint_A").click()
    choose(page, "primary_model_name", "meadow")
    choose(page, "secondary_model_name", "harbour")
    yield page
    for path in models.glob("*.safetensors"):  # the header's list is the next test's too
        path.unlink()
    page.request.post("/sdapi/v1/refresh-checkpoints")


def choose(page: Any, name: str, beginning: str) -> None:
    page.locator(f"#modelmerger_{name} input").click()
    page.locator(f'[role="option"][aria-label^="{beginning}"]').first.click()


def text_box(page: Any, name: str) -> Any:
    return page.locator(f"#modelmerger_{name} :is(input, textarea)")


def wait_for_state(page: Any, beginning: str) -> None:
    page.wait_for_function(
        f"document.getElementById('easel_merge_state').textContent.startsWith({json.dumps(beginning)})"
    )


def wait_for_end(page: Any, id: str) -> None:
    end = time.monotonic() + 60
    while page.request.get(f"/api/v1/merges/{id}").json()["state"] != "done":
        assert time.monotonic() < end, page.request.get(f"/api/v1/merges/{id}").text()
        page.wait_for_timeout(50)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_two_checkpoints_become_one_that_can_be_chosen(merger: Any, models: Path, server: Server) -> None:
    formula = merger.locator("#easel_merge_formula")
    assert formula.inner_text() == "A · (1 − M) + B · M"
    assert merger.locator("#modelmerger_cancel").is_disabled()
    merger.locator("#modelmerger_interp_amount input[type=number]").fill("0.5")
    text_box(merger, "custom_name").fill("both")
    merger.locator("#modelmerger_save_as_half input").check()
    merger.locator("#modelmerger_read_metadata").click()
    merger.wait_for_function(
        "document.querySelector('#modelmerger_metadata_json textarea').value.includes('easel.config')"
    )
    merger.locator("#modelmerger_merge").click()
    wait_for_state(merger, "Merged")
    assert merger.locator("#easel_merge_file").inner_text() == "both.safetensors"
    assert merger.locator("#easel_merge_bar").get_attribute("aria-valuenow") == "100"
    recipe = json.loads(metadata_of(models / "both.safetensors")["sd_merge_recipe"])
    assert (recipe["interp_method"], recipe["multiplier"], recipe["save_as_half"]) == ("Weighted sum", 0.5, True)
    merger.locator("#setting_sd_model_checkpoint input").click()
    merger.locator('[role="option"][aria-label^="both.safetensors"]').wait_for()
    merger.keyboard.press("Escape")
    chosen = merger.locator("#setting_sd_model_checkpoint input").input_value()
    assert chosen.startswith(server.checkpoint)  # what is new does not take its place unasked

    merger.locator("#modelmerger_merge").click()  # once more: it is there now
    merger.locator(".problem p").wait_for()
    assert problems(merger) == ["both.safetensors is there already; choose another name, or allow overwriting it"]
    assert text_box(merger, "custom_name").get_attribute("aria-invalid") == "true"
    merger.locator("#modelmerger_interp_method").get_by_text("No interpolation").click()
    assert formula.inner_text() == "A"
    merger.locator("#modelmerger_overwrite input").check()
    with merger.expect_response("**/api/v1/merges") as answer:
        text_box(merger, "custom_name").press("Control+Enter")
    assert answer.value.status == 202
    wait_for_end(merger, answer.value.json()["id"])
    recipe = json.loads(metadata_of(models / "both.safetensors")["sd_merge_recipe"])
    assert recipe["interp_method"] == "No interpolation"
    assert len(problems(merger)) == 1


def test_what_is_wrong_is_said_beside_the_box(merger: Any) -> None:
    text_box(merger, "metadata_json").fill("{x}")
    merger.locator("#modelmerger_merge").click()
    merger.locator(".problem p").wait_for()
    assert problems(merger)[0].startswith("Metadata in JSON format: this is no JSON")
    assert text_box(merger, "metadata_json").get_attribute("aria-invalid") == "true"
    text_box(merger, "metadata_json").fill("{}")
    text_box(merger, "discard_weights").fill("(")
    merger.locator("#modelmerger_merge").click()
    merger.wait_for_function("document.querySelectorAll('.problem p').length === 2")
    assert "no regular expression" in problems(merger)[1]
    assert text_box(merger, "metadata_json").get_attribute("aria-invalid") is None


def test_it_stands_in_chinese_and_on_a_narrow_page(new_page: Callable[..., Any]) -> None:
    page = new_page(locale="zh-CN", color_scheme="dark")
    open_tab(page, "模型合并")
    page.locator("#easel_merge_state").wait_for()
    labels = page.locator("#modelmerger_settings [data-testid=block-info]").all_inner_texts()
    assert len(labels) >= 9 and not any(label.isascii() for label in labels)
    assert page.locator("#easel_merge_explained").inner_text().startswith("A 与 B 的混合")
    page.locator("#easel_language").click()
    assert page.locator("#easel_merge_explained").inner_text().startswith("A mixture of A and B")
    page.set_viewport_size({"width": 400, "height": 860})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    place = page.locator("#modelmerger_merge").bounding_box()
    assert place["y"] + place["height"] <= 860 and place["x"] + place["width"] <= 400
