import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.postprocess.rescale import Rescale, rescaled, within
from modules.postprocess.upscale import PLAIN_UPSCALERS
from tests.golden import GOLDEN

FILE = GOLDEN / "files" / "extras.json"
CASES = {case["name"]: case for case in json.loads(FILE.read_text())} if FILE.is_file() else {}


@pytest.mark.parametrize("name", CASES or ["none"])
def test_as_measured(name: str, golden: Path):
    asked = CASES[name]["request"]
    wanted = Rescale(
        mode="Scale to" if asked.get("resize_mode") else "Scale by",
        by=float(asked.get("upscaling_resize", 2)),
        to=(asked.get("upscaling_resize_w", 512), asked.get("upscaling_resize_h", 512)),
        crop=asked.get("upscaling_crop", True),
        upscaler=asked["upscaler_1"],
        second=asked.get("upscaler_2", "None"),
        second_visibility=asked.get("extras_upscaler_2_visibility", 0),
    )
    image = Image.open(golden / "inputs" / "init.png").convert("RGB")
    made, info = rescaled(image, wanted, PLAIN_UPSCALERS.__getitem__)
    theirs = Image.open(golden / "files" / f"extras_{name}.png")
    assert np.array_equal(np.asarray(made), np.asarray(theirs.convert("RGB")))
    assert f"<p>{', '.join(f'{key}: {value}' for key, value in info.items())}</p>" == CASES[name]["html_info"]


def test_cases_are_there(golden: Path):
    assert len(CASES) == 6


def test_a_longest_side():
    made, info = rescaled(
        Image.new("RGB", (64, 128)), Rescale(by=4, max_side=256, upscaler="Lanczos"), PLAIN_UPSCALERS.__getitem__
    )
    assert made.size == (128, 256) and info["Max side length"] == 256
    assert (
        within((100, 300), 150) == (50, 150) and within((300, 100), 150) == (150, 50) and within((9, 9), 150) == (9, 9)
    )
