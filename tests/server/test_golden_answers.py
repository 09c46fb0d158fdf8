"""Measured requests through the HTTP API, with the real engine: infotexts, `info` and pictures of the answers are
A1111's. EASEL_ALL_CASES=1 takes all of them."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.app import App
from modules.runtime.paths import paths_from
from modules.server.api import create_api
from modules.server.gate import Gate
from tests.golden import golden as golden
from tests.golden import golden_cases
from tests.jobs.scene import flags_for
from tests.server.served import Served

QUICK = (
    "subseed_batch2", "hires_sampler_prompt", "lora_hires", "inpaint_return_mask", "inpaint_soft_inpainting",
)  # fmt: skip
ALL = bool(os.environ.get("EASEL_ALL_CASES"))
SCRIPTS = ("i2i_loopback", "i2i_sd_upscale")  # A1111 tells the seeds of their last run only
CASES = {
    name: case
    for name, case in golden_cases().items()
    if case["status"] == 200 and name not in SCRIPTS and (ALL or name in QUICK)
}
# A1111 picks a subseed at random; the clock and the program's name differ.
NEVER_THE_SAME = ("job_timestamp", "version", "infotexts")


@pytest.fixture(scope="module")
def served(golden, tmp_path_factory):
    models = str(golden / "models")
    folder = tmp_path_factory.mktemp("data")
    flags = flags_for(
        folder, "--no-half", "--ckpt-dir", models, "--lora-dir", models, "--embeddings-dir", models,
        "--hypernetwork-dir", models,
    )  # fmt: skip
    app = App(paths_from(flags, root=folder), flags)
    app.start()
    one = Served(Gate(create_api(app)), app)
    one.http.timeout = 300
    yield one
    one.close()


def as_sent(value, folder: Path):
    """Pictures are paths in the measured requests."""
    if isinstance(value, list):
        return [as_sent(one, folder) for one in value]
    return base64.b64encode((folder / value).read_bytes()).decode()


@pytest.mark.parametrize("name", [*CASES] or ["none"])
def test_the_answer_is_the_measured_one(served, golden, name):
    case = CASES[name]
    body = {key: as_sent(value, golden) if key in ("init_images", "mask") else value
            for key, value in case["request"].items()}  # fmt: skip
    answer = served.http.post(f"/sdapi/v1/{case['endpoint']}", json=body)
    assert answer.status_code == 200, answer.text
    ours, theirs = json.loads(answer.json()["info"]), dict(case["info"])
    assert [without_version(text) for text in ours["infotexts"]] == [without_version(t) for t in case["infotexts"]]
    if "subseed" not in body:
        for info in (ours, theirs):
            assert info["all_subseeds"] == [info["subseed"] + index for index in range(len(info["all_seeds"]))]
            del info["subseed"], info["all_subseeds"]
    for info in (ours, theirs):
        for key in NEVER_THE_SAME:
            info.pop(key, None)
    assert ours == theirs
    assert len(answer.json()["images"]) == case["n_images"]
    for number, text in enumerate(answer.json()["images"]):
        path = golden / "cases" / (f"{name}_{number}.png" if number else f"{name}.png")
        if path.exists():
            assert psnr(Image.open(io.BytesIO(base64.b64decode(text))), Image.open(path)) >= 45


def without_version(infotext: str) -> str:
    return infotext.split(", Version:")[0]


def psnr(one: Image.Image, other: Image.Image) -> float:
    """dB, of 8-bit values."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other))
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-10)))
