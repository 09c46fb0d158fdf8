"""POST /sdapi/v1/img2img over a real server: what is queued, what is answered, and what is refused."""

import base64
import io
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.generation.request import Init, Loopback, Mask, SdUpscale, SoftInpainting
from modules.server.fields import IMG2IMG
from tests.ending import ends
from tests.golden import golden as golden
from tests.jobs.scene import Painter
from tests.server.test_fields import ANYTHING


def picture(size=(64, 64), mode="RGB", colour=(200, 30, 30), kind="PNG", **options) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


INIT, MASK = picture(), picture(mode="L", colour=255)
ASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1, "init_images": [INIT]}


def img2img(served, **fields):
    return served.http.post("/sdapi/v1/img2img", json={**ASK, **fields})


def last_request(served):
    return served.app.queue.of_client("sdapi", 1)[0].request


def inputs_of(served) -> set[str]:
    return {path.stem for path in Path(served.app.inputs.folder).glob("??/*.png")}


def test_the_answer_has_a1111s_fields_in_their_order(quick, golden):
    cases = json.loads((golden / "api_behaviour.json").read_text("utf-8"))
    case = next(one for one in cases if one["name"] == "i2i_default_denoise")
    answer = quick.http.post("/sdapi/v1/img2img", json={**case["sent"]["json"], "init_images": [INIT]})
    ours, theirs = answer.json(), case["response"]
    assert answer.status_code == 200 and list(ours) == list(theirs)
    assert ours["parameters"] == theirs["parameters"] and list(ours["parameters"]) == list(theirs["parameters"])
    info, their_info = json.loads(ours["info"]), json.loads(theirs["info"])
    assert list(info) == list(their_info) and info["denoising_strength"] == 0.75


def test_defaults_are_a1111s(quick):
    assert img2img(quick, mask=MASK).status_code == 200
    init = last_request(quick).init
    assert init == Init(
        images=init.images,
        denoising_strength=0.75,
        resize_mode="Just resize",
        image_cfg_scale=1.0,
        mask=Mask(image=init.mask.image, content="fill", only_masked=True, padding=0),
    )
    assert quick.app.inputs.get(init.images[0]).getpixel((0, 0)) == (200, 30, 30)


def test_every_field_arrives(quick):
    answer = img2img(
        quick,
        init_images=[f"data:image/png;base64,{INIT}"],
        mask=MASK,
        denoising_strength=0.4,
        resize_mode=2,
        image_cfg_scale=2,
        mask_blur_x=3,
        mask_blur_y=5,
        mask_round=False,
        inpainting_fill=3,
        inpaint_full_res=False,
        inpaint_full_res_padding=16,
        inpainting_mask_invert=1,
        alwayson_scripts={"soft inpainting": {"args": [True, 2, 0.25]}},
    )
    assert answer.status_code == 200 and "warnings" not in answer.json()
    init = last_request(quick).init
    assert (init.denoising_strength, init.resize_mode, init.image_cfg_scale) == (0.4, "Resize and fill", 2.0)
    assert init.mask == Mask(
        image=init.mask.image,
        blur_x=3,
        blur_y=5,
        content="latent nothing",
        invert=True,
        only_masked=False,
        padding=16,
        round=False,
        soft=SoftInpainting(mask_blend_power=2, mask_blend_scale=0.25),
    )


def test_one_blur_stands_for_both(quick):
    img2img(quick, mask=MASK, mask_blur=0, mask_blur_x=3)
    mask = last_request(quick).init.mask
    assert (mask.blur_x, mask.blur_y) == (0, 0)


def test_pictures_come_back_only_when_asked_for(quick):
    hidden = img2img(quick, mask=MASK).json()["parameters"]
    assert (hidden["init_images"], hidden["mask"]) == (None, None)
    shown = img2img(quick, mask=MASK, include_init_images=True).json()["parameters"]
    assert (shown["init_images"], shown["mask"]) == ([INIT], MASK)


class Masker(Painter):
    """Shows a mask beside each picture, and has something to say."""

    def generate(self, *given):
        for painted in super().generate(*given):
            mask = Image.new("RGB", (8, 8), (painted.index, 0, 0))
            yield replace(painted, beside=(("mask", mask),), warnings=("a sentence",))


def test_masks_follow_their_pictures_and_have_no_infotext(serve, tmp_path):
    served = serve(Masker())
    wanted = {"return_mask": True, "save_mask": True}
    answer = img2img(served, n_iter=2, save_images=True, override_settings=wanted).json()
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in answer["images"]]
    assert sizes == [(128, 64), (64, 64), (8, 8), (64, 64), (8, 8)]  # the grid is first
    assert len(json.loads(answer["info"])["infotexts"]) == 3
    assert answer["warnings"] == ["a sentence", "a sentence"]
    kept = tmp_path / "outputs"
    assert {folder.name for folder in kept.iterdir()} == {"img2img-images", "img2img-grids"}
    names = sorted(path.name for path in (kept / "img2img-images").rglob("*.png"))
    assert names == ["00000-1.png", "00001-1-mask.png", "00002-2.png", "00003-2-mask.png"]
    assert len(img2img(served).json()["images"]) == 1


def test_more_init_images_are_a_batch(quick):
    other = picture(colour=(0, 0, 255))
    answer = img2img(quick, init_images=[INIT, other], batch_size=2).json()
    assert len(answer["images"]) == 2 and json.loads(answer["info"])["all_seeds"] == [1, 2]
    assert len(set(last_request(quick).init.images)) == 2
    img2img(quick, init_images=[INIT, other], batch_size=4)
    assert last_request(quick).batch_size == 2


def test_loopback_answers_with_a_grid_and_every_loop(quick):
    answer = img2img(quick, script_name="Loopback", script_args=[2, 0.25, "Lazy", "None"], batch_size=3).json()
    assert last_request(quick).init.script == Loopback(loops=2, final_denoising_strength=0.25, curve="Lazy")
    info = json.loads(answer["info"])
    assert info["index_of_first_image"] == 1 and info["all_seeds"] == [1, 2] and len(info["infotexts"]) == 3
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in answer["images"]]
    assert sizes == [(128, 64), (64, 64), (64, 64)]
    assert answer["warnings"] == ["loopback makes one picture after the other; batch_size has no effect"]
    assert not [path for path in Path(quick.app.paths.data_dir).rglob("*grid*/**/*.png")]


@pytest.mark.parametrize("upscaler", ["Lanczos", "lanczos", 1])
def test_sd_upscale_arrives(quick, upscaler):
    answer = img2img(quick, script_name="sd upscale", script_args=["", 16.0, upscaler, 1.5])
    assert answer.status_code == 200 and len(answer.json()["images"]) == 1
    script = last_request(quick).init.script
    assert script == SdUpscale(overlap=16, upscaler=script.upscaler, scale=1.5)
    assert script.upscaler.casefold() == "lanczos"


def test_a_mask_of_another_size_is_taken(quick):
    assert img2img(quick, mask=picture((20, 90), "L", 255)).status_code == 200


@pytest.mark.parametrize("mode", ["P", "LA", "I;16", "CMYK", "1", "RGBA"])
def test_pictures_of_every_mode_are_taken(quick, mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert img2img(quick, init_images=[picture(mode=mode, colour=0, kind=kind)]).status_code == 200


def test_line_breaks_and_missing_padding_are_forgiven(quick):
    broken = "\n".join(INIT[i : i + 40] for i in range(0, len(INIT), 40)).rstrip("=")
    assert img2img(quick, init_images=[broken]).status_code == 200


PNG = base64.b64decode(INIT)


def bomb(side=13_300) -> bytes:
    """A few bytes that say they are 13,300² pixels."""
    import struct

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"init_images": None}, 404, "init_images"),
        ({"init_images": []}, 404, "init_images"),
        ({"init_images": "x"}, 422, "init_images"),
        ({"init_images": [""]}, 422, "init_images[0]"),
        ({"init_images": [None]}, 422, "init_images[0]"),
        ({"init_images": ["%%%"]}, 422, "init_images[0]"),
        ({"init_images": ["zzzz"]}, 422, "init_images[0]"),
        ({"init_images": [INIT.replace("/", "_") + "-"]}, 422, "init_images[0]"),
        ({"init_images": [f"data:text/html;base64,{INIT}"]}, 422, "init_images[0]"),
        ({"init_images": [f"data:image/jpeg;base64,{INIT}"]}, 422, "init_images[0]"),
        ({"init_images": ["http://127.0.0.1:1/x.png"]}, 422, "init_images[0]"),
        ({"init_images": ["file:///etc/passwd"]}, 422, "init_images[0]"),
        ({"init_images": ["/etc/passwd"]}, 422, "init_images[0]"),
        ({"init_images": [INIT, "zzzz"], "batch_size": 2}, 422, "init_images[1]"),
        ({"init_images": [INIT, INIT]}, 422, "init_images"),
        ({"init_images": [INIT] * 9, "batch_size": 8}, 422, "init_images"),
        ({"init_images": [as_text(PNG[:-20])]}, 422, "init_images[0]"),
        ({"init_images": [as_text(bomb())]}, 422, "init_images[0]"),
        ({"init_images": [as_text(b"GIF89a" + bytes(50))]}, 422, "init_images[0]"),
        ({"init_images": [as_text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")]}, 422, "init_images[0]"),
        ({"mask": "zzzz"}, 422, "mask"),
        ({"mask": 5}, 422, "mask"),
        ({"denoising_strength": -0.1}, 422, "denoising_strength"),
        ({"denoising_strength": 1.1}, 422, "denoising_strength"),
        ({"denoising_strength": None}, 422, "denoising_strength"),
        ({"mask": MASK, "mask_blur": -1}, 422, "mask_blur"),
        ({"mask": MASK, "mask_blur": 10**6}, 422, "mask_blur"),
        ({"mask": MASK, "mask_blur_x": -1}, 422, "mask_blur_x"),
        ({"mask": MASK, "mask_blur_y": 65}, 422, "mask_blur_y"),
        ({"mask": MASK, "inpaint_full_res_padding": 10**6}, 422, "inpaint_full_res_padding"),
        ({"mask": MASK, "inpainting_fill": 4}, 422, "inpainting_fill"),
        ({"mask": MASK, "inpainting_mask_invert": 2}, 422, "inpainting_mask_invert"),
        ({"resize_mode": 4}, 422, "resize_mode"),
        ({"resize_mode": -1}, 422, "resize_mode"),
        ({"mask": MASK, "resize_mode": 3}, 422, "resize_mode"),
        ({"image_cfg_scale": 1000}, 422, "image_cfg_scale"),
        ({"initial_noise_multiplier": "x"}, 422, "initial_noise_multiplier"),
        ({"latent_mask": MASK}, 422, "latent_mask"),
        ({"width": 0}, 422, "width"),
        ({"script_name": "outpainting mk2"}, 422, "script_name"),
        ({"script_name": "loopback", "script_args": [2.5]}, 422, "script_args[0]"),
        ({"script_name": "loopback", "script_args": [2, 0.5, "Wild"]}, 422, "script_args[2]"),
        ({"script_name": "loopback", "script_args": [2, 0.5, "Lazy", "CLIP"]}, 422, "script_args[3]"),
        ({"script_name": "loopback", "script_args": "2"}, 422, "script_args"),
        ({"script_name": "loopback", "init_images": [INIT, INIT], "batch_size": 2}, 422, "init_images"),
        ({"script_name": "sd upscale", "script_args": ["", 8, "nope"]}, 422, "script_args[2]"),
        ({"script_name": "sd upscale", "script_args": ["", 8, 7]}, 422, "script_args[2]"),
        ({"script_name": "sd upscale", "script_args": ["", 8, "None", 0]}, 422, "script_args[3]"),
        ({"script_name": "sd upscale", "script_args": ["", 64]}, 422, "request"),  # tiles of 64
        ({"script_name": "sd upscale", "script_args": ["", 8], "mask": MASK}, 422, "mask"),
        ({"alwayson_scripts": {"soft inpainting": {"args": [True] * 9}}}, 422, "alwayson_scripts.soft inpainting.args"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "override_settings.sd_model_checkpoint"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_leaves_nothing(quick, fields, status, field):
    before = quick.app.queue.of_client("sdapi", 1)
    with ends():
        answer = img2img(quick, **fields)
    assert answer.status_code == status
    assert answer.json()["detail"][0]["field"] == field and len(answer.content) <= 4096
    assert quick.app.queue.of_client("sdapi", 1) == before


def test_no_picture_is_kept_when_another_field_is_wrong(serve):
    served = serve(Painter())
    assert img2img(served, steps=0).status_code == 422
    assert img2img(served, mask=MASK, mask_blur=-1).status_code == 422
    assert inputs_of(served) == set()
    assert img2img(served).status_code == 200
    assert len(inputs_of(served)) == 1


def test_a_missing_init_image_is_said_as_a1111_says_it(quick):
    answer = quick.http.post("/sdapi/v1/img2img", json={"prompt": "x"})
    assert answer.status_code == 404 and "Init image not found" in answer.json()["error"]


def test_an_infotext_brings_its_fields(quick):
    text = (
        "a\nSteps: 3, Sampler: Euler, Seed: 5, Size: 64x64, Denoising strength: 0.3, Mask blur: 2, Masked content: fill"
    )
    answer = quick.http.post("/sdapi/v1/img2img", json={"infotext": text, "init_images": [INIT], "mask": MASK})
    init = last_request(quick).init
    assert answer.status_code == 200 and (init.denoising_strength, init.mask.blur_x) == (0.3, 2)
    assert init.mask.content == "fill"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(IMG2IMG)), value=ANYTHING)
def test_any_value_in_any_field_is_answered(quick, name, value):
    answer = img2img(quick, **{"mask": MASK, name: value})
    assert answer.status_code in (200, 403, 404, 409, 422), answer.text
    assert answer.status_code == 200 or len(answer.content) <= 4096
