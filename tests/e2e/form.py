"""What a person does with the page, in words of one line. For the tests of this folder."""

import json
from typing import Any

FAST = 4  # steps
LONG = 150  # steps: enough time to do something meanwhile


def box(page: Any, name: str) -> Any:
    return page.locator(f"#txt2img_{name} :is(textarea, input:not([type=range]))").first


def ask_for(page: Any, prompt: str, steps: int = FAST, size: int = 64, **more: float) -> None:
    box(page, "prompt").fill(prompt)
    for name, value in {"steps": steps, "width": size, "height": size, **more}.items():
        box(page, name).fill(str(value))


def generate(page: Any) -> None:
    page.locator("#txt2img_generate").click()


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


def infotext(page: Any) -> str:
    return str(page.locator("#easel_infotext").inner_text())


def problems(page: Any) -> list[str]:
    return list(page.locator(".problem p").all_inner_texts())
