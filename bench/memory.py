"""What the networks compute with, measured with fake tensors of true sizes: nothing is allocated, nothing is run, and
the bytes are exact. `python -m bench.memory` prints the peaks, the constants of modules/families/footprint.py, and
what the planner makes of usual cards."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from modules.families.footprint import UNET_WITH_ATTENTION, UNET_WITHOUT, Footprint, footprint_of
from modules.families.hints import config_of
from modules.families.levels import Work, choose, rungs
from modules.families.vae import DECODER, ENCODER
from modules.runtime.device import Placement
from modules.runtime.memory import GIB, Counting

FACTOR = 8
CARDS = {  # GB that are free on it, and what is asked of it: pictures, width, height
    "SDXL": [(8.5, 1, 1024), (4.0, 1, 1024), (10.6, 1, 1024), (10.6, 4, 1024), (14.6, 4, 1024), (14.6, 1, 2048)],
    "SD 1.x": [(3.0, 1, 512), (1.5, 1, 512), (3.6, 4, 768), (10.6, 8, 768), (10.6, 1, 2048)],
}


class Networks(NamedTuple):
    """As footprint_of wants a model; nothing behind it."""

    components: dict[str, Any]
    placement: Placement


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_default_dtype(torch.float16)
    for kind, name, constant in (("sd1", "SD 1.x", UNET_WITH_ATTENTION), ("sdxl", "SDXL", UNET_WITHOUT)):
        with FakeTensorMode(), torch.inference_mode():
            model = networks(kind)
            unet = model.components["unet"]
            print(f"\n{name}, fp16: UNet\n{'rows':>6}{'pixels':>8}{'peak MB':>10}{'formula':>10}{'× width':>10}")
            for rows in (1, 2, 8):
                for side in (512, 768, 1024, 1536):
                    cells = (side // FACTOR) ** 2
                    row(rows, side, peak_of_unet(unet, rows, side), rows * cells, constant, 320)
            vae = model.components["vae"]
            for part, measure, times in (("decoder", peak_of_decoder, DECODER), ("encoder", peak_of_encoder, ENCODER)):
                print(f"{name}, fp16: VAE's {part}")
                for side in (512, 1024, 2048):
                    row(1, side, measure(vae, side), side * side, times, 128)
            footprint = footprint_of(model)  # type: ignore[arg-type]
        say_plans(name, footprint)


def row(rows: int, side: int, peak: int, units: int, constant: float, width: int) -> None:
    fitted = constant * width * units * 2
    print(f"{rows:6}{side:8}{peak / 1e6:10.1f}{fitted / 1e6:10.1f}{peak / 2 / units / width:10.3f}")


def say_plans(name: str, footprint: Footprint) -> None:
    print(f"{name}: {footprint.weights / 1e9:.2f} GB of weights")
    for gigabytes, pictures, side in CARDS[name]:
        plan = choose(
            rungs(footprint, Work(pictures, 2 * pictures, side, side), FACTOR, moves=True), int(gigabytes * GIB)
        )
        wanted = f"{gigabytes:5.1f} GiB, {pictures} × {side}²"
        print(f"{wanted:24}{f'{plan}: {plan.needed / GIB:.2f} GiB' if plan else 'refused'}")


def networks(kind: str) -> Networks:
    parts: dict[str, Any] = {"unet": UNet2DConditionModel.from_config(config_of(kind, "unet"))}
    parts["vae"] = AutoencoderKL.from_config(config_of(kind, "vae"))
    parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**config_of(kind, "text_encoder")))
    if kind == "sdxl":
        config = CLIPTextConfig(**config_of(kind, "text_encoder_2"))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(config)
    half = torch.float16
    return Networks(parts, Placement(torch.device("cpu"), half, half, half, channels_last=False))


def peak_of_unet(unet: Any, rows: int, side: int) -> int:
    x = torch.empty(rows, 4, side // FACTOR, side // FACTOR)
    cross = torch.empty(rows, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.empty(rows, 1280), "time_ids": torch.empty(rows, 6)}
    return peak(lambda: unet(x, torch.ones(rows), cross, added_cond_kwargs=added, return_dict=False))


def peak_of_decoder(vae: Any, side: int) -> int:
    z = torch.empty(1, vae.config.latent_channels, side // FACTOR, side // FACTOR)
    return peak(lambda: vae.decode(z, return_dict=False))


def peak_of_encoder(vae: Any, side: int) -> int:
    pixels = torch.empty(1, 3, side, side)
    return peak(lambda: vae.encode(pixels, return_dict=False))


def peak(call: Callable[[], object]) -> int:
    with Counting() as counting:
        call()
    return counting.peak


if __name__ == "__main__":
    main()
