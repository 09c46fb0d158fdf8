"""Which settings the header shows."""

import pytest

from modules.settings.schema import SETTINGS
from modules.web.quicksettings import shown_keys


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (SETTINGS["quicksettings_list"].default, ["sd_vae", "CLIP_stop_at_last_layers"]),
        ([], []),
        (["sd_model_checkpoint", "tiling", "tiling", "no_such"], ["tiling"]),
        (["outdir_samples", "api_enable_requests", "randn_source"], ["randn_source"]),
    ],
)
def test_what_the_list_names_without_what_the_page_may_not_set(chosen: list[str], shown: list[str]) -> None:
    assert shown_keys(chosen) == shown
