"""What keeping a picture knows of it; that it survives crashes is tried in test_worker.py and test_kill.py."""

from datetime import datetime
from typing import Any

import pytest

from modules.gallery.naming import expand
from modules.generation.plan import Texts, plan
from modules.generation.request import GenerationRequest, Hires, Init
from modules.jobs.job import Job, JobImage, ModelIdentity
from modules.jobs.keeper import kind_of, naming_facts
from modules.prompt.styles import Style
from modules.settings.schema import Settings

PICTURE = "0" * 64


def job(infotext: str = "a", **changes: Any) -> tuple[Job, JobImage]:
    fields = {
        "prompt": "a cat",
        "seed": 40,
        "checkpoint": "m.safetensors",
        "batch_size": 2,
        "batch_count": 2,
        **changes,
    }
    request = GenerationRequest(**fields)
    image = JobImage(2, None, True, 42, infotext, 128, 64, None)
    model = ModelIdentity("folder/m.safetensors", 1, 1, "c4346f8673" + "0" * 54)
    return Job("id", 1, "running", "api", "c", request, {}, model, 0.0, None, None, 1, False, None, (image,)), image


def named(pattern: str, infotext: str = "a", **changes: Any) -> str:
    one, image = job(infotext, **changes)
    texts = Texts(styles=[Style("oil", "{prompt}, oil on canvas", "photo")])
    planned = plan(one.request, texts=texts).images[image.index]
    return expand(pattern, naming_facts(one, image, Settings(), plan=planned), datetime(2026, 11, 22))


@pytest.mark.parametrize(
    ("pattern", "changes", "name"),
    [
        ("[seed]-[seed_first]-[seed_last]", {}, "42-42-43"),
        ("[seed_first]-[seed_last]", {"variation_strength": 0.5, "variation_seed": 1}, "40-40"),
        ("[batch_number]_[generation_number]_[batch_size]", {}, "1_3_2"),
        ("x[denoising]", {}, ""),
        ("x[denoising]", {"hires": Hires(denoising_strength=0.6)}, "x0.6"),
        ("x[denoising]", {"init": Init(images=(PICTURE,), denoising_strength=0.5)}, "x0.5"),
        ("[styles]", {"styles": ("oil",)}, "oil"),
        ("[prompt_spaces]|[prompt_no_styles]", {"styles": ("oil",)}, "a cat, oil on canvas|a cat"),
        ("[hasprompt<oil|none>]", {"styles": ("oil",)}, "oil"),
        ("[model_name]-[model_hash]", {}, "m-c4346f8673"),
        ("[vae_filename]", {}, "NoneType"),
    ],
)
def test_what_patterns_know(pattern: str, changes: dict[str, Any], name: str):
    assert named(pattern, **changes) == name


def test_the_vae_is_the_one_that_the_infotext_names():
    infotext = "a\nSteps: 1, Sampler: Euler, Seed: 1, VAE: kl-f8.vae.pt"
    assert named("[vae_filename]", infotext) == "kl-f8"


def test_kinds_of_pictures():
    assert kind_of(job()[0]) == "txt2img"
    assert kind_of(job(init=Init(images=(PICTURE,)))[0]) == "img2img"
