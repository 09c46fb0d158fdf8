import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.imaging.soft_inpaint import SoftInpainting, opacity, soft_overlay, weighted_window


def test_the_hole_follows_what_moved():
    distance = np.zeros((8, 8), np.float32)
    distance[:, :3] = 9
    hole = opacity(distance, np.ones((8, 8), np.float32), SoftInpainting())
    assert (hole[:, 0] > 250).all() and (hole[:, 7] == 0).all()


def test_a_constant_picture_is_its_own_window():
    assert np.allclose(weighted_window(np.full((5, 7), 3.25, np.float32), 0.9, 1), 3.25)
    lone = np.zeros((9, 9), np.float32)
    lone[4, 4] = 1
    assert weighted_window(lone, 0.9, 1)[4, 4] == 1 and weighted_window(lone, 0.25, 0.75)[4, 4] < 0.01


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_setting_gives_a_hole(data):
    limits = (8, 8, 32, 1, 8, 8)
    soft = SoftInpainting(*(data.draw(st.floats(1 if top == 32 else 0, top)) for top in limits))
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    cells = [data.draw(st.lists(st.floats(0, top, width=32), min_size=36, max_size=36)) for top in (20, 1)]
    distance, mask = (np.array(c[: height * width], np.float32).reshape(height, width) for c in cells)
    image = Image.new("RGB", (width * 16, height * 16), "red")
    overlay, hole = soft_overlay(distance, mask, image, (width * 8, height * 8), soft, (0, 0, width * 4, height * 4))
    assert overlay.mode == "RGBA" and hole.mode == "L" and overlay.size == hole.size == image.size


def test_infotext_as_measured(golden: Path):
    text = json.loads((golden / "cases" / "inpaint_soft_inpainting.json").read_text())["infotexts"][0]
    ours = ", ".join(f"{name}: {value}" for name, value in SoftInpainting().infotext().items())
    assert ours in text
