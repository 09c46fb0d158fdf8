"""How fast the page is: `python bench/page.py [--rounds 9] [--url http://…]`

Starts a server of its own (or measures one that runs), waits until the model is loaded, and opens the page in fresh
Chromium contexts with nothing cached. Prints medians as JSON; see docs/benchmarks.md for A1111's numbers.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
START_S = 120.0

# Runs before the page's own scripts: notes when the prompt box is there, and when the page's script has taken it over.
STOPWATCH = """
  window.seen = {};
  const look = () => {
    const box = document.querySelector("#txt2img_prompt textarea");
    if (box && box.checkVisibility({ visibilityProperty: true }) && !seen.visible) seen.visible = performance.now();
    if (document.documentElement?.dataset.ready && !seen.usable) seen.usable = performance.now();
    if (!seen.usable) requestAnimationFrame(look);
  };
  look();
"""
TAB_SWITCH = """
  (name) => new Promise((resolve) => {
    const tab = [...document.querySelectorAll("#tabs [role=tab]")].find((one) => one.textContent.trim() === name);
    const begin = performance.now();
    tab.click();
    const look = () => tab.getAttribute("aria-selected") === "true"
      ? requestAnimationFrame(() => resolve(performance.now() - begin)) : requestAnimationFrame(look);
    look();
  })
"""
CLICK = """
  () => new Promise((resolve) => {
    const begin = performance.now();
    const state = document.getElementById("easel_state");
    const reply = document.getElementById("txt2img_reply");
    let told = 0;
    new MutationObserver(() => (told ||= performance.now() - begin)).observe(state, { childList: true });
    new MutationObserver(() => resolve([told, performance.now() - begin]))
      .observe(reply, { childList: true, characterData: true, subtree: true });
    document.getElementById("txt2img_generate").click();
  })
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--url", help="of a running server")
    arguments = parser.parse_args()
    with served(arguments.url) as url:
        wait_for_model(url)
        rounds = list(measure(url, arguments.rounds))
    print(json.dumps({name: round(statistics.median(one[name] for one in rounds), 1) for name in rounds[0]}, indent=2))


@contextmanager
def served(url: str | None) -> Iterator[str]:
    if url:
        yield url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(ROOT / "webui.py"), "--port", str(port), "--data-dir", folder]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def wait_for_model(url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/status", timeout=5) as answer:
                if json.load(answer)["model"]["state"] in ("ready", "failed"):
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    sys.exit(f"{url} had no model after {START_S:.0f} s")


def measure(url: str, number: int) -> Iterator[dict[str, float]]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(number + 1):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            found = one_round(context.new_page(), url)
            context.close()
            if _:  # the first warms browser and server
                yield found
        browser.close()


def one_round(page: Any, url: str) -> dict[str, float]:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.add_init_script(STOPWATCH)
    page.goto(url)
    page.wait_for_function("window.seen.usable")
    page.wait_for_load_state("load")
    page.wait_for_timeout(500)  # what the page asks for once it stands there counts too
    seen = page.evaluate("window.seen")
    opened, nodes = len(requests), page.evaluate("document.querySelectorAll('*').length")
    first, back = page.evaluate(TAB_SWITCH, "PNG Info"), page.evaluate(TAB_SWITCH, "txt2img")
    page.locator("#txt2img_steps input[type=number]").fill("1")
    told, accepted = page.evaluate(CLICK)
    return {
        "prompt_box_visible_ms": seen["visible"],
        "prompt_box_usable_ms": seen["usable"],
        "requests": opened,
        "requests_outside": sum(not one.startswith((url, "data:")) for one in requests),
        "dom_nodes": nodes,
        "tab_first_ms": first,
        "tab_back_ms": back,
        "click_answered_ms": told,
        "click_accepted_ms": accepted,
    }


if __name__ == "__main__":
    main()
