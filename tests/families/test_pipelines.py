"""Every family against diffusers' own pipelines: random networks, saved in the original single-file layout and loaded
here, make the same picture as the pipeline around the networks themselves."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from bench.checkpoints import TOKENIZER, Kind, Parts
from modules.diffusion.guidance import cfg
from modules.diffusion.schedules import timesteps_for
from modules.families.family import Conditioning, TextOptions
from modules.families.latent import noise_levels
from modules.families.loader import read_model
from tests.tiny import FP32, save_tiny_of, tiny_parts

PROMPT, NEGATIVE = "a photo of a red cat", "blurry, green"
SIZE = {"width": 64, "height": 32}
OPTIONS = TextOptions(width=64, height=32)
STEPS, SCALE = 4, 5.0
BOUND = 1e-3  # relative error of the picture


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def tokenizer(pad: str) -> Any:
    return CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad, model_max_length=77)


def parts_of_pipeline(parts: Parts, **scheduler: Any) -> dict[str, Any]:
    levels = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    levels |= {"set_alpha_to_one": False, "steps_offset": 1}
    return {"unet": parts.unet, "vae": parts.vae, "scheduler": diffusers.DDIMScheduler(**levels, **scheduler)}


def sd_pipeline(kind: str, parts: Parts, pad: str, **scheduler: Any) -> Any:
    return getattr(diffusers, kind)(
        **parts_of_pipeline(parts, **scheduler),
        text_encoder=parts.text_encoder,
        tokenizer=tokenizer(pad),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl_pipeline(kind: str, parts: Parts, **more: Any) -> Any:
    return getattr(diffusers, kind)(
        **parts_of_pipeline(parts),
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=tokenizer("<|endoftext|>") if parts.text_encoder else None,
        tokenizer_2=tokenizer("!"),
        add_watermarker=False,
        **more,
    )


def noise(seed: int = 1) -> Tensor:
    return torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def picture_of(pipe: Any, **arguments: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "latents": noise(), **arguments}
    made = pipe(PROMPT, output_type="pt", **arguments).images
    assert isinstance(made, Tensor)
    return made


@torch.inference_mode()
def our_picture(
    path: Path,
    negative: str = NEGATIVE,
    options: TextOptions = OPTIONS,
    beside: Tensor | None = None,
) -> Tensor:
    model = read_model(path, FP32)
    cond, uncond = model.encode([PROMPT], options), model.encode([negative], options, negative=True)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        of: Callable[[Conditioning], Tensor] = lambda c: model.predict_eps(x, t.expand(1), c, beside)  # noqa: E731
        return cfg(of(cond), of(uncond), SCALE)

    return model.decode(ddim(eps, model.alphas_cumprod))


def ddim(eps: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor) -> Tensor:
    """Every step of diffusers' walk; A1111's, and so ours, leaves out the last one."""
    x, a = noise(), alphas_cumprod
    steps = timesteps_for(STEPS)
    for t, before in zip(steps.flip(0), [*steps[:-1].flip(0), 0], strict=True):
        e = eps(x, t)
        x0 = (x - (1 - a[t]).sqrt() * e) / a[t].sqrt()
        x = a[before].sqrt() * x0 + (1 - a[before]).sqrt() * e
    return x


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # a picture, not a colour
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error <= BOUND, error


def saved(folder: Path, kind: Kind, parts: Parts, *args: Any, **more: Tensor) -> Path:
    return save_tiny_of(folder / "model.safetensors", kind, parts, *args, **more)


def test_sd1(tmp_path: Path) -> None:
    parts = tiny_parts("sd1")
    pipe = sd_pipeline("StableDiffusionPipeline", parts, "<|endoftext|>")
    theirs = picture_of(pipe, negative_prompt=NEGATIVE, **SIZE)
    assert_same(our_picture(saved(tmp_path, "sd1", parts)), theirs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sd2(tmp_path: Path, prediction: str) -> None:
    parts = tiny_parts("sd2")
    pipe = sd_pipeline("StableDiffusionPipeline", parts, "!", prediction_type=prediction)
    theirs = picture_of(pipe, negative_prompt=NEGATIVE, **SIZE)
    path = saved(tmp_path, "sd2", parts, {"modelspec.prediction_type": prediction})
    assert_same(our_picture(path), theirs)


@pytest.mark.parametrize("negative", [NEGATIVE, ""])
def test_sdxl(tmp_path: Path, negative: str) -> None:
    parts = tiny_parts("sdxl")
    pipe = xl_pipeline("StableDiffusionXLPipeline", parts)
    # Where nothing is given the pipeline takes zeros, as A1111 does for an empty text.
    theirs = picture_of(pipe, negative_prompt=negative or None, **SIZE)
    assert_same(our_picture(saved(tmp_path, "sdxl", parts), negative), theirs)


def test_sdxl_is_told_of_the_corner(tmp_path: Path) -> None:
    parts = tiny_parts("sdxl")
    corner = {"crops_coords_top_left": (5, 9), "negative_crops_coords_top_left": (5, 9)}
    theirs = picture_of(xl_pipeline("StableDiffusionXLPipeline", parts), negative_prompt=NEGATIVE, **SIZE, **corner)
    path = saved(tmp_path, "sdxl", parts)
    options = TextOptions(width=64, height=32, crop_top=5, crop_left=9)
    assert_same(our_picture(path, options=options), theirs)
    assert ((our_picture(path) - theirs).norm() / theirs.norm()) > BOUND


def test_refiner(tmp_path: Path) -> None:
    parts = tiny_parts("refiner")
    pipe = xl_pipeline("StableDiffusionXLImg2ImgPipeline", parts, requires_aesthetics_score=True)
    sizes = {"original_size": (32, 64), "negative_original_size": (32, 64), "target_size": (32, 64)}
    scores = {"aesthetic_score": 6.5, "negative_aesthetic_score": 2.0}
    # Latents for a picture and denoising_start 0: it samples from them as they are.
    theirs = picture_of(
        pipe, image=noise(), denoising_start=0.0, negative_prompt=NEGATIVE, strength=1.0, **sizes, **scores
    )
    options = TextOptions(width=64, height=32, aesthetic_score=6.5, negative_aesthetic_score=2.0)
    assert_same(our_picture(saved(tmp_path, "refiner", parts), options=options), theirs)


def beside_of(path: Path) -> tuple[Tensor, Tensor]:
    """(a mask, the masked picture's latents)"""
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., 1:3, 1:6] = 1
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        hidden = read_model(path, FP32).encode_image(pixels, noise(3))
    return mask, hidden.clone()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_inpainting(tmp_path: Path, kind: Kind) -> None:
    parts = tiny_parts(kind, in_channels=9)
    path = saved(tmp_path, kind, parts)
    mask, hidden = beside_of(path)
    if kind == "sdxl":
        pipe = xl_pipeline("StableDiffusionXLInpaintPipeline", parts)
    else:
        pad = "!" if kind == "sd2" else "<|endoftext|>"
        pipe = sd_pipeline("StableDiffusionInpaintPipeline", parts, pad)
    whole = torch.nn.functional.interpolate(mask, scale_factor=8)
    theirs = picture_of(
        pipe,
        image=torch.zeros(1, 3, 32, 64),
        mask_image=whole,
        masked_image_latents=hidden,
        strength=1.0,
        negative_prompt=NEGATIVE,
        **SIZE,
    )
    assert_same(our_picture(path, beside=torch.cat([mask, hidden], dim=1)), theirs)


def test_instruct_pix2pix(tmp_path: Path) -> None:
    parts = tiny_parts("sd1", in_channels=8)
    path = saved(tmp_path, "sd1", parts)
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    pipe = sd_pipeline("StableDiffusionInstructPix2PixPipeline", parts, "<|endoftext|>")
    theirs = picture_of(pipe, image=pixels, image_guidance_scale=1.5, negative_prompt=NEGATIVE)
    with torch.inference_mode():
        model = read_model(path, FP32)
        assert model.image_channels == 4
        beside = model.encode_image(pixels, torch.zeros(1, 4, 4, 8)) / model.latent.scale
        cond, uncond = model.encode([PROMPT], OPTIONS), model.encode([NEGATIVE], OPTIONS, negative=True)

        def eps(x: Tensor, t: Tensor) -> Tensor:
            t = t.expand(1)
            both, picture = (model.predict_eps(x, t, c, beside) for c in (cond, uncond))
            none = model.predict_eps(x, t, uncond, torch.zeros_like(beside))
            return none + SCALE * (both - picture) + 1.5 * (picture - none)

        assert_same(model.decode(ddim(eps, model.alphas_cumprod)), theirs)


def test_zero_terminal_snr(tmp_path: Path) -> None:
    parts = tiny_parts("sdxl")
    levels = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = parts_of_pipeline(parts, **levels)["scheduler"]
    path = saved(tmp_path, "sdxl", parts, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    model = read_model(path, FP32)
    torch.testing.assert_close(model.alphas_cumprod[:-1], scheduler.alphas_cumprod[:-1], rtol=1e-3, atol=1e-7)
    assert 4500 < ((1 - model.alphas_cumprod[-1]) / model.alphas_cumprod[-1]).sqrt() < 4530
    pipe = xl_pipeline("StableDiffusionXLPipeline", parts)
    pipe.scheduler = scheduler
    assert_same(our_picture(path), picture_of(pipe, negative_prompt=NEGATIVE, **SIZE))


def test_noise_levels_come_back(tmp_path: Path) -> None:
    model = read_model(saved(tmp_path, "sd1", tiny_parts("sd1")), FP32)
    before = model.alphas_cumprod
    with noise_levels(model, zero_snr=True, downcast=True):
        assert model.alphas_cumprod[-1] < 1e-7
        torch.testing.assert_close(model.alphas_cumprod[:1], before[:1].half().float())
    assert model.alphas_cumprod is before
