"""A server that dies in the middle: the open page says so, finds its run again, and goes on without a reload."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import free_port, opened, running
from tests.e2e.form import ask_for, box, generate, jobs_of, problems, wait_for_pictures, wait_for_state, wait_for_step

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_an_open_page_outlives_its_server(browser: Any, tmp_path: Path, checkpoint_flags: list[str]) -> None:
    port = free_port()
    with running(tmp_path, port, checkpoint_flags) as (url, process):
        context = browser.new_context(base_url=url, locale="en-US")
        page = opened(context.new_page())
        page.evaluate("window.untouched = true")
        ask_for(page, "red apple", steps=60, batch_count=2)
        generate(page)
        wait_for_step(page)
        process.kill()
        wait_for_state(page, "The server does not answer")
        generate(page)
        assert problems(page)[0].startswith("The server did not answer, so nothing was queued.")
    with running(tmp_path, port, checkpoint_flags):
        wait_for_pictures(page, 2)
        wait_for_state(page, "Done")
        box(page, "prompt").fill("pizza")
        generate(page)
        wait_for_pictures(page, 3)
        assert sorted(len(job["images"]) for job in jobs_of(page))[-1] == 2
        assert page.evaluate("window.untouched")
        context.close()
