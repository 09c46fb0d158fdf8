"""Where the measured data of A1111 lies: the folder named by EASEL_GOLDEN, else ../shared/golden beside the repository.
Tests that need it ask for the fixture `golden`; without the folder they say so and skip."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("EASEL_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
DATA = Path(__file__).resolve().parent / "data"  # the committed subset


@pytest.fixture(scope="session")
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden data at {GOLDEN}; set EASEL_GOLDEN to its folder")
    return GOLDEN


def golden_cases() -> dict[str, dict[str, Any]]:
    """All measured cases by name; empty where the data is absent (ask for the fixture `golden` too: it tells)."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(GOLDEN.glob("cases/*.json"))}
