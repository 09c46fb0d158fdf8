"""What an infotext fills of a form."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.app import App
from modules.prompt.styles import Style, write_styles
from modules.web.pasting import from_infotext, from_saved
from tests.jobs.scene import make_app

PLAIN = (
    "red apple\nNegative prompt: fog\n"
    "Steps: 7, Sampler: Euler, Schedule type: Karras, CFG scale: 5.5, Seed: 99, Size: 128x192, Model: plain"
)
FULL = (
    f"{PLAIN}, Variation seed: 3, Variation seed strength: 0.4, Seed resize from: 64x64, Denoising strength: 0.6, "
    "Clip skip: 2, Hires upscale: 1.5, Hires steps: 4, Hires upscaler: Latent (bicubic), Hires sampler: Euler a, "
    'Hires prompt: "a, b", Refiner: plain, Refiner switch at: 0.7, Mystery: 1'
)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = make_app(tmp_path)
    yield app
    app.store.close()


def test_every_box_is_filled(app: App) -> None:
    values, problems = from_infotext(app, FULL)
    assert [one["got"] for one in problems] == ["Mystery: 1"]
    wanted = {
        "prompt": "red apple",
        "negative_prompt": "fog",
        "sampler": "Euler",
        "schedule": "Karras",
        "steps": 7,
        "cfg_scale": 5.5,
        "seed": 99,
        "width": 128,
        "height": 192,
        "extra": True,
        "variation_seed": 3,
        "variation_strength": 0.4,
        "seed_resize_width": 64,
        "hires": True,
        "hires.denoising_strength": 0.6,
        "hires.scale": 1.5,
        "hires.steps": 4,
        "hires.upscaler": "Latent (bicubic)",
        "hires.sampler": "Euler a",
        "hires.prompt": "a, b",
        "refiner": True,
        "refiner.switch_at": 0.7,
        "override_settings": ["Clip skip: 2"],
    }
    assert {name: values[name] for name in wanted} == wanted
    assert values["refiner.checkpoint"].startswith("plain.safetensors")


def test_parts_that_it_does_not_name_are_switched_off(app: App) -> None:
    values, problems = from_infotext(app, PLAIN)
    assert problems == []
    assert [values[name] for name in ("hires", "refiner", "extra", "init.mask.soft")] == [False] * 4
    assert "RNG: GPU" not in values["override_settings"]


def test_strength_goes_to_img2img_where_there_was_no_hires_fix(app: App) -> None:
    inpainted = f"{PLAIN}, Denoising strength: 0.5, Mask blur: 8, Inpaint area: Only masked, Masked area padding: 16"
    values, _ = from_infotext(app, inpainted)
    assert values["init.denoising_strength"] == 0.5 and not values["hires"]
    assert (values["init.mask.blur_x"], values["init.mask.only_masked"]) == (8, "Only masked")


def test_the_checkpoint_stays_unless_the_setting_says_otherwise(app: App) -> None:
    assert "checkpoint" not in from_infotext(app, PLAIN)[0]
    app.settings.update({"disable_weights_auto_swap": False})
    assert from_infotext(app, PLAIN)[0]["checkpoint"].startswith("plain.safetensors")


def test_a_text_without_parameters_is_a_prompt(app: App) -> None:
    assert from_infotext(app, " red apple, on a table ") == ({"prompt": "red apple, on a table"}, [])


def test_styles_are_found_in_the_prompt(app: App) -> None:
    write_styles(app.styles_file, [Style("shiny", "{prompt}, shiny")])
    values, _ = from_infotext(app, PLAIN.replace("red apple", "red apple, shiny"))
    assert (values["prompt"], values["styles"]) == ("red apple", ["shiny"])


def test_an_upscaler_that_is_not_here_is_told(app: App) -> None:
    values, problems = from_infotext(
        app, f"{PLAIN}, Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: 4x-Gone"
    )
    assert values["hires"] and "hires.upscaler" not in values
    assert problems[0]["text"] == "there is no upscaler '4x-Gone' here"


def test_what_was_saved_and_cannot_be_any_more_is_left_out(app: App) -> None:
    saved = {"sampler": "Gone", "schedule": "Karras", "hires.upscaler": "Gone", "checkpoint": "gone"}
    assert from_saved(app, saved) == {"schedule": "Karras"}


def test_loras_get_the_names_that_they_have_here(app: App, tmp_path: Path) -> None:
    header = b'{"__metadata__":{"ss_output_name":"ours"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    folder = app.paths.models_dir / "Lora"
    folder.mkdir(parents=True)
    (folder / "ours.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    app.networks.refresh("lora")
    (file,) = app.networks.list("lora")
    digest = app.networks.shorthash(file)
    text = f'a <lora:theirs:0.5>\nSteps: 7, Sampler: Euler, Seed: 9, Lora hashes: "theirs: {digest}"'
    assert from_infotext(app, text)[0]["prompt"] == "a <lora:ours:0.5>"
