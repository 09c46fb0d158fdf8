"""img2img: pictures that are sent, drawn on and handed on; what of them reaches the queue."""

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import opened
from tests.e2e.form import (
    ask_for,
    box,
    choose,
    generate,
    infotext,
    jobs_of,
    open_tab,
    problems,
    size_of_shown,
    wait_for_jobs,
    wait_for_pictures,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return path


@pytest.fixture
def img2img(page: Any) -> Any:
    open_tab(page, "img2img")
    ask_for(page, "red apple", tab="img2img", steps=2)
    return page


def give(page: Any, place: str, *pictures: Path) -> None:
    page.locator(f"#{place} input[type=file]").set_input_files(list(pictures))
    page.wait_for_selector(f"#{place} .canvas.filled, #{place}:not(:has(.canvas)):not(.busy)")


def draw(page: Any, place: str, *points: tuple[float, float]) -> None:
    """Along points in parts of the view's width and height."""
    view = page.locator(f"#{place} .canvas-view").bounding_box()
    at = [(view["x"] + x * view["width"], view["y"] + y * view["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def kept(page: Any, id: str) -> Any:
    answer = page.request.get(f"/api/v1/inputs/{id}")
    assert answer.ok
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def test_from_an_uploaded_picture(img2img: Any, picture: Path) -> None:
    page = img2img
    generate(page, "img2img")
    page.wait_for_function("document.querySelectorAll('.problem').length === 1")
    assert problems(page) == ["There is no picture to start from. Drop one, paste one or choose one."]
    page.locator(".problem [data-do=dismiss]").click()
    give(page, "img2img_image", picture)
    page.locator("#img2img_detect_image_size_btn").click()
    assert [box(page, side, "img2img").input_value() for side in ("width", "height")] == ["96", "64"]
    box(page, "denoising_strength", "img2img").fill("0.4")
    page.get_by_label("Crop and resize").click()
    box(page, "prompt", "img2img").press("Control+Enter")
    (request,) = wait_for_jobs(page, 1)
    assert (request["width"], request["height"], request["hires"]) == (96, 64, None)
    init = request["init"]
    assert (init["denoising_strength"], init["resize_mode"], init["mask"]) == (0.4, "Crop and resize", None)
    assert np.array_equal(kept(page, init["images"][0]), np.asarray(Image.open(picture)))
    wait_for_pictures(page, 1)
    assert problems(page) == [] and size_of_shown(page) == [96, 64]


def test_generate_waits_for_a_tab_that_is_still_being_built(page: Any) -> None:
    held: list[Any] = []
    page.route("**/img2img.js*", lambda route: held.append(route))
    with page.expect_request("**/img2img.js*"):
        open_tab(page, "img2img")
    page.wait_for_selector("#img2img_generate")
    generate(page, "img2img")
    page.wait_for_timeout(300)
    assert problems(page) == []
    for route in held:
        route.continue_()
    page.wait_for_function("document.querySelectorAll('.problem').length === 1")
    assert problems(page) == ["There is no picture to start from. Drop one, paste one or choose one."]
    assert jobs_of(page) == []


def test_a_tab_whose_script_does_not_come_says_so_at_once(browser: Any, server: Any) -> None:
    with closing(browser.new_context(locale="zh-CN", base_url=server.url)) as context:  # its console is not watched
        page = opened(context.new_page())
        page.route("**/img2img.js*", lambda route: route.fulfill(status=503, body="busy"))
        page.locator("#tab_img2img-button").click()
        page.wait_for_function("document.querySelectorAll('.problem').length === 1")
        page.wait_for_selector("#img2img_generate")
        page.locator(".problem [data-do=dismiss]").click()
        generate(page, "img2img")
        page.wait_for_function("document.querySelectorAll('.problem').length === 1")
        assert "未能加载" in problems(page)[0] and jobs_of(page) == []
        page.locator("#tab_txt2img-button").click()
        ask_for(page, "红苹果")
        generate(page)
        assert wait_for_jobs(page, 1)[0]["prompt"] == "红苹果"  # the other tabs work on


def test_a_drawn_mask_is_white_where_it_was_drawn(img2img: Any, picture: Path) -> None:
    page = img2img
    page.locator("#img2img_inpaint_tab").click()
    give(page, "img2maskimg", picture)
    generate(page, "img2img")
    page.wait_for_function("document.querySelectorAll('.problem').length === 1")
    assert "Nothing is drawn" in problems(page)[0]
    page.locator(".problem [data-do=dismiss]").click()
    draw(page, "img2maskimg", (0.3, 0.5), (0.4, 0.5))
    draw(page, "img2maskimg", (0.7, 0.5), (0.75, 0.5))
    page.keyboard.press("Control+z")
    page.keyboard.press("w")
    assert int(page.locator("#img2maskimg .canvas-size").input_value()) > 24
    page.get_by_label("Only masked", exact=True).click()
    page.locator("#soft_inpainting_enabled-checkbox input").click()
    generate(page, "img2img")
    (request,) = wait_for_jobs(page, 1)
    mask = request["init"]["mask"]
    drawn = kept(page, mask["image"])
    assert drawn.shape == (64, 96, 3) and tuple(drawn[32, 33]) == (255, 255, 255)
    assert not drawn[:, 60:].any() and not drawn[:4].any()
    assert (mask["only_masked"], mask["blur_x"], mask["blur_y"], mask["content"]) == (True, 4, 4, "original")
    assert mask["soft"]["inpaint_detail_preservation"] == 4
    wait_for_pictures(page, 1)
    assert problems(page) == [] and "Mask blur: 4" in infotext(page)


def test_paint_becomes_the_picture_or_picture_and_mask(img2img: Any, picture: Path) -> None:
    page = img2img
    page.locator("#img2img_img2img_sketch_tab").click()
    give(page, "img2img_sketch", picture)
    draw(page, "img2img_sketch", (0.5, 0.5), (0.5, 0.5))
    generate(page, "img2img")
    wait_for_jobs(page, 1)
    page.locator("[data-copy=inpaint_sketch]").click()  # with its paint
    page.wait_for_selector("#inpaint_sketch .canvas.filled")
    draw(page, "inpaint_sketch", (0.25, 0.5), (0.25, 0.5))
    box(page, "mask_blur", "img2img").fill("0")
    generate(page, "img2img")
    inpaint, sketch = wait_for_jobs(page, 2)
    paint = (224, 72, 62)
    assert tuple(kept(page, sketch["init"]["images"][0])[32, 48]) == paint and sketch["init"]["mask"] is None
    both = kept(page, inpaint["init"]["images"][0])
    assert tuple(both[32, 48]) == tuple(both[32, 24]) == paint
    mask = kept(page, inpaint["init"]["mask"]["image"])
    assert mask[32, 24].all() and not mask[32, 48].any()


def test_a_batch_becomes_jobs(img2img: Any, picture: Path, tmp_path: Path) -> None:
    page = img2img
    other = tmp_path / "<img src=x onerror=window.__xss=1>.png"
    Image.new("RGB", (64, 64), "blue").save(other)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"GIF89a")
    page.locator("#img2img_batch_tab").click()
    give(page, "img2img_batch_upload", picture, broken, other)
    page.wait_for_function("document.querySelectorAll('.problem').length === 1")
    assert "this is a GIF" in problems(page)[0]
    page.get_by_role("tab", name="Resize by").click()
    generate(page, "img2img")
    second, first = wait_for_jobs(page, 2)
    assert [(one["width"], one["height"]) for one in (first, second)] == [(96, 64), (64, 64)]
    assert first["init"]["mask"] is None and first["seed"] != -1


def test_a_picture_goes_on_to_inpaint_with_its_parameters(page: Any) -> None:
    ask_for(page, "red apple", seed=77, width=72)
    choose(page, "sampling", "Euler a")
    generate(page)
    wait_for_pictures(page, 1)
    page.locator("#txt2img_send_to_inpaint").click()
    page.wait_for_selector("#img2maskimg .canvas.filled")
    page.wait_for_function("document.querySelector('#img2img_seed input').value === '77'")
    assert box(page, "sampling", "img2img").input_value() == "Euler a"
    assert [box(page, side, "img2img").input_value() for side in ("width", "height")] == ["72", "64"]
    assert page.locator("#img2img_gallery").is_visible()  # the viewer comes along
    page.reload()
    page.wait_for_selector("html[data-ready]")
    open_tab(page, "img2img")
    page.wait_for_selector("#img2maskimg .canvas.filled")
    page.wait_for_function("document.querySelector('#img2img_seed input').value === '77'")


def test_on_a_telephone_in_the_dark(new_page: Callable[..., Any], picture: Path) -> None:
    page = new_page(400, 860, color_scheme="dark")
    open_tab(page, "img2img")
    page.locator("#mode_img2img [aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "img2img_inpaint_tab"
    give(page, "img2maskimg", picture)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#img2maskimg [data-do=full]").click()
    view = page.locator("#img2maskimg .canvas-view").bounding_box()
    assert (view["width"], view["height"] > 600) == (400, True)
    page.keyboard.press("Escape")
    assert page.locator("#img2maskimg .canvas-view").bounding_box()["height"] < 400
