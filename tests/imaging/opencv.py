"""What OpenCV, scikit-image and blendmodes really computed (tests/data/opencv.json): those that A1111 has, and we do
without."""

import json
from functools import lru_cache
from typing import Any

import numpy as np

from tests.golden import DATA


@lru_cache(maxsize=1)
def measured() -> dict[str, Any]:
    return json.loads((DATA / "opencv.json").read_text("utf-8"))


def array(name: str) -> np.ndarray:
    return np.array(measured()[name], dtype=np.uint8)
