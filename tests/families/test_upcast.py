"""--upcast-sampling and its neighbours at tiny size: which dtype each part has, and how near their pictures are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoints import save_original
from modules.families.family import Conditioning, TextOptions
from modules.families.loader import read_model
from modules.families.networks.applied import applied
from modules.runtime.device import Card, placement_from
from modules.runtime.flags import parse
from tests.families.networks.files import network_from, network_of
from tests.tiny import HEADS, OTHER_HEADS, save_tiny_of, tiny_parts

CPU = Card(torch.device("cpu"), has_bf16=True)
FP32, BF16 = torch.float32, torch.bfloat16


def whole(name: str) -> bool:
    """Of a UNet, by the names of its parameters."""
    return "norm" in name or name.startswith(("time_embedding.", "add_embedding.", "conv_"))


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield save_tiny_of(tmp_path_factory.mktemp("models") / "tiny.safetensors", request.param, tiny_parts(request.param))


def load(path: Path, *flags: str) -> Any:
    return read_model(path, placement_from(parse(list(flags)), CPU))


@torch.inference_mode()
def predicted(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    conditioning: Conditioning = model.encode(["a cat", "a dog"], TextOptions())
    x = torch.randn(2, 4, 16, 16, generator=generator)
    found: Tensor = model.predict(x, torch.tensor([801.0, 17.0]), conditioning)
    return found


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def dtypes(network: Any) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in network.named_parameters()}


def test_upcast_sampling_keeps_halves_and_computes_what_is_delicate_in_fp32(path: Path) -> None:
    model = load(path, "--upcast-sampling")
    unet = dtypes(model.unet)
    assert {name for name, dtype in unet.items() if dtype is FP32} == set(filter(whole, unet))
    assert {dtype for name, dtype in unet.items() if not whole(name)} == {BF16}
    assert sum(dtype is BF16 for dtype in unet.values()) > 50
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def watch(name: str) -> Any:
        return lambda layer, given, output: seen.__setitem__(name, (given[0].dtype, output.dtype))

    for name, layer in model.unet.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(watch(name))
    predicted(model)
    assert seen["time_embedding.linear_1"] == seen["time_embedding.linear_2"] == (FP32, FP32)
    assert seen["conv_in"] == seen["conv_out"] == (FP32, FP32)  # the latent, and what is predicted, are not rounded
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    assert {dtypes for name, dtypes in seen.items() if name.endswith((".to_q", "net.0.proj"))} == {(FP32, BF16)}
    assert seen[f"{block}.attn1.to_out.0"] == (BF16, FP32)
    assert {given for name, (_, given) in seen.items() if name.endswith(("conv1", "conv2", "conv", "norm2"))} == {FP32}
    assert {given for name, (given, _) in seen.items() if name.endswith(("norm1", "norm2", "norm3"))} == {FP32}


def test_upcast_sampling_is_nearer_to_fp32_than_halves_alone(path: Path) -> None:
    exact, halves, upcast = (predicted(load(path, *flags)) for flags in (["--no-half"], [], ["--upcast-sampling"]))
    assert 0 < distance(upcast, exact) < distance(halves, exact) < 0.03


def test_in_fp32_nothing_of_it_changes_a_bit(path: Path) -> None:
    """The layers are the same formulas: with weights of fp32 they give the same numbers."""
    from modules.families import upcast

    plain = load(path, "--no-half")
    expected = predicted(plain)
    upcast.upcast(plain.unet)
    assert torch.equal(predicted(plain), expected)


@pytest.mark.parametrize(
    ("flags", "unet", "others", "vae"),
    [
        ([], BF16, FP32, FP32),
        (["--no-half"], FP32, FP32, FP32),
        (["--precision", "full"], FP32, FP32, FP32),
        (["--precision", "half"], BF16, BF16, BF16),
        (["--precision", "half", "--no-half-vae"], BF16, BF16, FP32),
    ],
)
def test_every_flag_gives_each_part_its_dtype_and_about_the_same_picture(
    path: Path, flags: list[str], unet: torch.dtype, others: torch.dtype, vae: torch.dtype
) -> None:
    model, exact = load(path, *flags), load(path, "--no-half")
    found = {name: set(dtypes(network).values()) for name, network in model.components.items()}
    wanted = dict.fromkeys(found, {others}) | {"unet": {unet}, "vae": {vae}}
    assert found == wanted
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pixels, reference = model.decode(latents), exact.decode(latents)
    assert distance(predicted(model), predicted(exact)) <= (0 if others is FP32 is unet else 0.03)
    products = FP32 if not model.placement.vae_mixed else BF16  # of an fp32 VAE (families/mixed.py)
    assert (pixels - reference).abs().max() <= (1e-5 if vae is products is FP32 else 0.03)


@pytest.mark.parametrize("functional", [False, True])
def test_loras_and_hypernetworks_work_at_an_upcast_unet(tmp_path: Path, functional: bool) -> None:
    """They add to layers that are given fp32 and compute in halves."""
    path = save_tiny_of(tmp_path / "tiny.safetensors", "sd1", tiny_parts("sd1"))
    places = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (64, 64),
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj": (512, 64),
        "lora_unet_down_blocks_1_resnets_0_conv1": (64, 32, 3, 3),
        "lora_unet_time_embedding_linear_1": (128, 32),
    }
    torch.manual_seed(2)
    lora = network_from(tmp_path, {f"{place}.diff": torch.randn(shape) * 0.1 for place, shape in places.items()})
    layers = {f"linear.{i}.weight": torch.randn(64, 64) * 0.1 for i in (0, 1)}
    torch.save({64: [layers, layers], "activation_func": "linear"}, tmp_path / "hyper.pt")
    hyper = network_of(tmp_path / "hyper.pt", "hypernetwork")
    model, exact = load(path, "--upcast-sampling"), load(path, "--no-half")
    before = predicted(model)
    with applied(exact, [lora, hyper]):
        expected = predicted(exact)
    with applied(model, [lora, hyper], functional):
        changed = predicted(model)
    assert distance(changed, before) > 0.1 and distance(changed, expected) < 0.03
    assert torch.equal(predicted(model), before)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_what_computes_in_fp32_keeps_the_halves_of_its_file(kind: Any, tmp_path: Path) -> None:
    """Half the memory of text encoders and VAE, and not one bit of another result."""
    path, wide = tmp_path / "halves.safetensors", tmp_path / "wide.safetensors"
    metadata = HEADS if kind == "sd1" else OTHER_HEADS
    save_original(path, kind, tiny_parts(kind), torch.float16, metadata)
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, wide, metadata)  # the same numbers
    model, whole = load(path), load(wide)
    for name in ("text_encoder", "text_encoder_2", "vae"):
        if name in model.components:
            halves = [p for p in model.components[name].parameters() if p.dtype is torch.float16]
            assert sum(p.numel() for p in halves) > 0.8 * sum(p.numel() for p in model.components[name].parameters())
            assert {p.dtype for p in whole.components[name].parameters()} == {FP32}
    texts = ["a cat", "a dog on a sofa"]
    with torch.inference_mode():
        assert torch.equal(model.encode(texts, TextOptions()).cross, whole.encode(texts, TextOptions()).cross)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.decode(latents), whole.decode(latents))
        pixels, noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 4, 8, 8)
        assert torch.equal(model.encode_image(pixels, noise), whole.encode_image(pixels, noise))
    for flag in ("--no-half", "--no-half-vae"):
        assert {p.dtype for p in load(path, flag).components["vae"].parameters()} == {FP32}
    assert {p.dtype for p in load(path, "--no-half").components["text_encoder"].parameters()} == {FP32}
