"""The requests that the tab img2img makes of its form and the pictures that its ticket names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from modules.jobs.inputs import Inputs, UnknownPicture
from modules.web.form import problems_of
from modules.web.img2img import requests_of

VALUES: dict[str, Any] = {
    "prompt": "a cat",
    "width": 128,
    "height": 64,
    "scale": 1.5,
    "transparency": 0,
    "init.resize_mode": "Crop and resize",
    "init.denoising_strength": 0.6,
    "init.image_cfg_scale": 1.5,
    "init.mask.blur_x": 3,
    "init.mask.invert": "Inpaint masked",
    "init.mask.content": "fill",
    "init.mask.only_masked": "Only masked",
    "init.mask.padding": 8,
    "init.mask.soft": False,
    "init.mask.soft.mask_blend_power": 2,
}


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def picture(inputs: Inputs, colour: str = "red", size: tuple[int, int] = (100, 60)) -> str:
    return inputs.put(Image.new("RGB", size, colour))


def ticket(mode: str, *images: str, **more: Any) -> dict[str, Any]:
    return {"init": {"mode": mode, "images": list(images), **more}}


def test_a_picture_without_a_mask(inputs: Inputs) -> None:
    id = picture(inputs)
    (request,) = requests_of(inputs, VALUES, ticket("img2img", id))
    assert request.init is not None and request.init.mask is None
    assert request.init.images == (id,) and (request.width, request.height) == (128, 64)
    assert (request.init.resize_mode, request.init.denoising_strength) == ("Crop and resize", 0.6)


def test_a_mask_with_what_belongs_to_it(inputs: Inputs) -> None:
    id, mask_id = picture(inputs), picture(inputs, "white")
    (request,) = requests_of(inputs, VALUES | {"init.mask.soft": True}, ticket("inpaint", id, masks=[mask_id]))
    mask = request.init and request.init.mask
    assert mask and mask.soft and mask.soft.mask_blend_power == 2
    assert (mask.image, mask.blur_x, mask.blur_y, mask.content, mask.padding) == (mask_id, 3, 3, "fill", 8)
    assert (mask.invert, mask.only_masked) == (False, True)


def test_a_scale_takes_the_picture_s_own_size(inputs: Inputs) -> None:
    (request,) = requests_of(inputs, VALUES, ticket("img2img", picture(inputs), by_scale=True))
    assert (request.width, request.height) == (144, 88)


def test_an_inpaint_sketch_becomes_a_picture_and_a_mask(inputs: Inputs) -> None:
    painted = Image.new("RGB", (100, 60), "red")
    painted.paste("blue", (40, 20, 60, 40))
    values = VALUES | {"init.mask.blur_x": 0}
    told = ticket("inpaint_sketch", inputs.put(painted), original=picture(inputs))
    (request,) = requests_of(inputs, values, told)
    assert request.init and request.init.mask
    mask = np.asarray(inputs.get(request.init.mask.image).convert("L"))
    assert mask[30, 50] == 255 and mask[5, 5] == 0
    assert inputs.get(request.init.images[0]).getpixel((50, 30)) == (0, 0, 255)


def test_a_batch_is_a_request_for_each_picture(inputs: Inputs) -> None:
    ids = [picture(inputs, colour) for colour in ("red", "green", "blue")]
    mask = picture(inputs, "white")
    requests = requests_of(inputs, VALUES, ticket("batch", *ids))
    assert [one.init and one.init.images for one in requests] == [(id,) for id in ids]
    assert all(one.init and one.init.mask is None for one in requests)
    masked = requests_of(inputs, VALUES, ticket("batch", *ids, masks=[mask]))
    assert all(one.init and one.init.mask and one.init.mask.image == mask for one in masked)
    with pytest.raises(ValueError, match="as many masks as pictures"):
        requests_of(inputs, VALUES, ticket("batch", *ids, masks=[mask, mask]))


@pytest.mark.parametrize("told", [{}, ticket("img2img"), ticket("nonsense", "0" * 64)])
def test_without_a_picture_there_is_no_request(inputs: Inputs, told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no picture to start from"):
        requests_of(inputs, VALUES, told)


@pytest.mark.parametrize("id", ["0" * 64, "../../config.json"])
def test_a_picture_that_is_gone_is_told_before_it_is_queued(inputs: Inputs, id: str) -> None:
    with pytest.raises(UnknownPicture):
        requests_of(inputs, VALUES, ticket("img2img", id))


def test_problems_name_the_boxes(inputs: Inputs) -> None:
    with pytest.raises(ValidationError) as caught:
        requests_of(inputs, VALUES | {"init.denoising_strength": 7}, ticket("img2img", picture(inputs)))
    assert problems_of(caught.value)[0]["field"].startswith("init.denoising_strength")
