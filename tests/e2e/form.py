"""What a person does with the page, in words of one line. For the tests of this folder."""

import json
import time
from typing import Any

from tests.e2e.conftest import WAIT_MS

FAST = 4  # steps
LONG = {"steps": 150, "size": 384, "batch_count": 100}  # ends by being interrupted: nothing is as slow as this is long


def box(page: Any, name: str, tab: str = "txt2img") -> Any:
    return page.locator(f"#{tab}_{name} :is(textarea, input:not([type=range]))").first


def ask_for(page: Any, prompt: str, steps: int = FAST, size: int = 64, tab: str = "txt2img", **more: float) -> None:
    box(page, "prompt", tab).fill(prompt)
    for name, value in {"steps": steps, "width": size, "height": size, **more}.items():
        box(page, name, tab).fill(str(value))


def generate(page: Any, tab: str = "txt2img") -> None:
    page.locator(f"#{tab}_generate").click()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).first.click()


def wait_for_jobs(page: Any, number: int) -> list[dict[str, Any]]:
    """The requests of the newest jobs, as they were queued."""
    end = time.monotonic() + WAIT_MS / 1000
    while len(jobs := jobs_of(page)) < number:
        assert time.monotonic() < end, problems(page)
        page.wait_for_timeout(50)
    return [job["request"] for job in jobs[:number]]


def wait_for_pictures(page: Any, number: int) -> None:
    """Until so many are finished, and no preview is shown any more."""
    page.wait_for_function(
        f"document.querySelectorAll('#easel_film img').length >= {number}"
        " && document.getElementById('easel_picture').src.includes('/api/v1/jobs/')"
    )


def wait_for_step(page: Any) -> None:
    """Until a run has made its first steps."""
    page.wait_for_function("/^Step \\d/.test(document.getElementById('easel_state').textContent)")


def wait_for_state(page: Any, beginning: str) -> None:
    page.wait_for_function(f"document.getElementById('easel_state').textContent.startsWith({json.dumps(beginning)})")


def wait_for_setting(page: Any, key: str, begins: str) -> None:
    """Until the server keeps it, which is a moment after the page shows it. (Playwright's wait_for_function does not
    wait for promises.)"""
    end = time.monotonic() + WAIT_MS / 1000
    while not (kept := str(page.request.get("/sdapi/v1/options").json()[key])).startswith(begins):
        assert time.monotonic() < end, kept
        page.wait_for_timeout(50)


def choose(page: Any, name: str, option: str) -> None:
    page.locator(f"#txt2img_{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def client_of(page: Any) -> str:
    return str(page.evaluate("sessionStorage.getItem('easel.client')"))


def jobs_of(page: Any) -> list[dict[str, Any]]:
    answer = page.request.get(f"/api/v1/jobs?client={client_of(page)}")
    assert answer.ok
    found: list[dict[str, Any]] = answer.json()
    return found


def size_of_shown(page: Any) -> list[int]:
    found: list[int] = page.locator("#easel_picture").evaluate("one => [one.naturalWidth, one.naturalHeight]")
    return found


def infotext(page: Any) -> str:
    return str(page.locator("#easel_infotext").inner_text())


def problems(page: Any) -> list[str]:
    return list(page.locator(".problem p").all_inner_texts())
