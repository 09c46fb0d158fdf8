from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.diffusion.soft_inpaint import distance
from modules.families.family import UNTOLD, Model
from modules.families.sd1 import SD1Family
from modules.generation.latent_upscale import upscale_latent
from modules.imaging import masks
from modules.imaging.inpainting import Inpainting, inpainting, masked_part, overlaid
from modules.imaging.resize import RESIZE_MODES, resize_image
from modules.imaging.soft_inpaint import SoftInpainting, soft_overlay
from modules.library.header import read_header
from tests.golden import golden_cases
from tests.tiny import FP32

CASES = {name: case["request"] for name, case in golden_cases().items() if name.startswith("inpaint_")}
SIZE = (128, 192)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the source was measured; networks this small only wait for one another on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(golden: Path) -> Model:
    path = golden / "models" / "tiny-sd1.safetensors"
    return SD1Family().load(path, read_header(path), path.with_suffix(".yaml"), FP32, UNTOLD)


def init(golden: Path, name: str = "init") -> Image.Image:
    return Image.open(golden / "inputs" / f"{name}.png").convert("RGB")


def encoded(model: Model, image: Image.Image) -> np.ndarray:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    return model.encode_image(pixels, torch.zeros(1, 4, image.height // 8, image.width // 8)).numpy()


def decoded(model: Model, latent: np.ndarray) -> Image.Image:
    pixels = model.decode(torch.from_numpy(latent))[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray((pixels * 255).astype(np.uint8))


def part_of(case: dict, golden: Path) -> Inpainting:
    blur = case["mask_blur"]
    invert = bool(case.get("inpainting_mask_invert"))
    mask = masks.prepared_mask(Image.open(golden / case["mask"]), invert=invert, blur_x=blur, blur_y=blur)
    padding = case.get("inpaint_full_res_padding", 0)
    part = inpainting(mask, SIZE, only_masked=case["inpaint_full_res"], padding=padding)
    assert part is not None
    return part


def off(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", CASES or ["none"])
def test_init_latent_and_picture_as_measured(name: str, golden: Path, model: Model):
    case, measured = CASES[name], np.load(golden / "cases" / f"{name}.npz")
    part, content = part_of(case, golden), masks.MASKED_CONTENTS[case["inpainting_fill"]]
    soft = "alwayson_scripts" in case
    cells = part.latent_mask(rounded=not soft)
    latent = encoded(model, part.source(init(golden), content))
    if content == "latent noise":
        latent = latent * (1 - cells) + measured["noise_0"] * cells
    elif content == "latent nothing":
        latent = latent * (1 - cells)
    assert off(latent, measured["init_latent_0"]) < 1e-5
    final, overlay = measured["pass_latent_0"], part.overlay(init(golden))
    if soft:
        moved = distance(torch.from_numpy(measured["init_latent_0"]), torch.from_numpy(final))[0].numpy()
        overlay, _ = soft_overlay(moved, cells, init(golden), SIZE, SoftInpainting())
    else:
        final = final * cells + measured["init_latent_0"] * (1 - cells)
    if "final_latent_0" in measured:
        assert off(final, measured["final_latent_0"]) < 1e-6
    painted = part.placed(decoded(model, final), SIZE)
    ours = overlaid(painted, overlay)
    theirs = Image.open(golden / "cases" / f"{name}.png").convert("RGB")
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    if "return_mask" in case["override_settings"]:
        mask, alone = (Image.open(golden / "cases" / f"{name}_{number}.png") for number in (1, 2))
        assert (np.asarray(part.overlay_mask.convert("RGB")) == np.asarray(mask)).all()
        assert np.abs(np.asarray(masked_part(painted, part.overlay_mask)).astype(int) - np.asarray(alone)).max() <= 1


def test_cases_are_there(golden: Path):
    assert len(CASES) >= 12


@pytest.mark.parametrize("mode", [0, 2, 3])
def test_resized_init_latents_as_measured(mode: int, golden: Path, model: Model):
    image = init(golden, "init_200x150")
    if RESIZE_MODES[mode] == "Just resize (latent upscale)":
        latent = upscale_latent(torch.from_numpy(encoded(model, image)), 16, 24).numpy()
    else:
        latent = encoded(model, resize_image(RESIZE_MODES[mode], image, *SIZE))
    assert off(latent, np.load(golden / "cases" / f"i2i_resize_mode_{mode}.npz")["init_latent_0"]) < 1e-5


def test_a_black_mask_keeps_all_and_a_white_one_nothing():
    original, painted = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    black = inpainting(Image.new("L", (64, 64)), (64, 64))
    assert black is not None and not black.latent_mask().any()
    assert overlaid(painted, black.overlay(original)).tobytes() == original.tobytes()
    white = inpainting(Image.new("L", (64, 64), 255), (64, 64), only_masked=True)
    assert white is not None and white.region == (0, 0, 64, 64) and white.latent_mask().all()
    assert overlaid(painted, white.overlay(original)).tobytes() == painted.tobytes()


def test_only_masked_with_a_black_mask_is_no_inpainting():
    assert inpainting(Image.new("L", (64, 64)), (64, 64), only_masked=True) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_picture_mask_and_size_fit_together(data):
    whole = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
    size = data.draw(st.integers(1, 10)) * 8, data.draw(st.integers(1, 10)) * 8
    mode, only_masked = data.draw(st.sampled_from(RESIZE_MODES)), data.draw(st.booleans())
    mask = Image.new("L", whole)
    mask.putpixel((data.draw(st.integers(0, whole[0] - 1)), data.draw(st.integers(0, whole[1] - 1))), 255)
    part = inpainting(mask, size, mode, only_masked=only_masked, padding=data.draw(st.integers(0, 1000)))
    assert part is not None
    image, painted = Image.new("RGB", whole, "red"), Image.new("RGB", size, "blue")
    source = part.source(image, data.draw(st.sampled_from(masks.MASKED_CONTENTS)))
    latent_upscale = mode == "Just resize (latent upscale)" and not only_masked
    assert source.mode == "RGB" and source.size == (whole if latent_upscale else size)
    finished = overlaid(part.placed(painted, whole), part.overlay(image))
    assert finished.size == (whole if only_masked else size)
    assert part.latent_mask().shape == (size[1] // 8, size[0] // 8)
