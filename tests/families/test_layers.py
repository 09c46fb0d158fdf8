"""The faster layers: in fp32 what diffusers computes, in bf16 no further from it than plain bf16 is."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from modules.families import layers
from modules.families.fp8 import keep
from modules.families.layers import FASTER, hastened
from tests.tiny import tiny_parts

LAST = torch.channels_last


def faster(layer: nn.Module) -> nn.Module:
    made = deepcopy(layer)
    hastened(made)
    return made


def filled(layer: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape) * max(1, parameter[0].numel()) ** -0.5
    return layer.eval().requires_grad_(False)


def error(made: Tensor, exact: Tensor) -> float:
    return float((made.double() - exact.double()).norm() / exact.double().norm())


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(7, 5), (24, 24)])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolutions(options: dict[str, Any], size: tuple[int, int]):
    plain = filled(nn.Conv2d(24, 40, **options)).bfloat16().to(memory_format=LAST)
    x = torch.randn(2, 24, *size).bfloat16().contiguous(memory_format=LAST)
    exact = deepcopy(plain).double()(x.double())
    made = faster(plain)(x)
    assert made.shape == exact.shape and made.dtype is torch.bfloat16
    assert error(made, exact) <= error(plain(x), exact) * 1.05
    for layout in (x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert error(faster(plain)(layout), exact) <= error(plain(x), exact) * 1.05


@pytest.mark.skipif(not layers.ONEDNN_HAS_BF16, reason="oneDNN has no bf16 on this processor")
@torch.inference_mode()
def test_small_ones_are_one_product(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, ...]] = []
    product = layers._as_product
    monkeypatch.setattr(layers, "_as_product", lambda x, *rest: (seen.append(tuple(x.shape)), product(x, *rest))[1])
    convolution = faster(filled(nn.Conv2d(8, 8, 3, padding=1))).bfloat16()
    for side in (16, 17):
        convolution(torch.randn(2, 8, side, side).bfloat16())
    assert seen == [(2, 16, 16, 72)]


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_gated(bias: bool):
    for plain in (nn.Linear(48, 96, bias=bias), GEGLU(48, 96, bias=bias)):
        x = torch.randn(2, 33, 48)
        own = filled(plain)
        torch.testing.assert_close(faster(own)(x), own(x), rtol=1e-6, atol=1e-6)
        half, short = deepcopy(own).bfloat16(), x.bfloat16()
        exact = deepcopy(half).double()(short.double())
        assert error(faster(half)(short), exact) <= error(half(short), exact) * 1.05


@torch.inference_mode()
def test_a_layer_of_its_own_kind_or_with_hooks_is_asked_as_a_whole():
    gated, x = filled(GEGLU(32, 64)), torch.randn(1, 4, 32)
    hooked = faster(gated)
    handle = hooked.proj.register_forward_hook(lambda layer, given, output: output + 1)  # type: ignore[operator,union-attr]
    value, gate = (gated.proj(x) + 1).chunk(2, dim=-1)  # type: ignore[operator]
    torch.testing.assert_close(hooked(x), value * nn.functional.gelu(gate))
    handle.remove()
    torch.testing.assert_close(hooked(x), gated(x), rtol=1e-6, atol=1e-6)
    eight = filled(GEGLU(32, 64))
    keep(eight)
    weight = eight.proj.taken(eight.proj.weight, None, torch.float32, False)  # type: ignore[operator,union-attr]
    eight.proj.weight = nn.Parameter(weight, requires_grad=False)  # type: ignore[union-attr]
    assert faster(eight)(x).equal(eight(x))


@torch.inference_mode()
@pytest.mark.parametrize("given", [24, 32])
def test_residual_blocks(given: int):
    block = filled(ResnetBlock2D(in_channels=given, out_channels=32, temb_channels=16, groups=8, output_scale_factor=2))
    x, t = torch.randn(2, given, 6, 5), torch.randn(2, 16)
    kept = x.clone(), t.clone()
    torch.testing.assert_close(faster(block)(x, t), block(x, t), rtol=1e-6, atol=1e-6)
    assert x.equal(kept[0]) and t.equal(kept[1])


def test_training_goes_the_old_way():
    for layer, shape in ((GEGLU(8, 16), (2, 3, 8)), (nn.Conv2d(8, 8, 3, padding=1), (2, 8, 4, 4))):
        for dtype in (torch.float32, torch.bfloat16):
            own = deepcopy(layer).to(dtype)
            other = faster(own)
            x = torch.randn(shape, dtype=dtype)
            own(x).sum().backward()
            other(x).sum().backward()
            for a, b in zip(own.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_whole_networks(kind: Any):
    """In fp32 the same; in bf16, channels last, no worse than diffusers' own in bf16."""
    parts = tiny_parts(kind)
    unet, size = parts.unet, parts.unet.config.cross_attention_dim
    x, t, c = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 700.0]), torch.randn(2, 77, size)
    more = {}
    if kind == "sdxl":
        more = {"added_cond_kwargs": {"text_embeds": torch.randn(2, 48), "time_ids": torch.randn(2, 6) * 100}}
    exact = unet(x, t, c, **more)[0]
    torch.testing.assert_close(faster(unet)(x, t, c, **more)[0], exact, rtol=1e-4, atol=1e-5)
    assert {type(layer) for layer in faster(unet).modules()} >= set(FASTER.values())
    half = deepcopy(unet).bfloat16().to(memory_format=LAST)
    told = (
        {"added_cond_kwargs": {k: v.bfloat16() for k, v in more.get("added_cond_kwargs", {}).items()}} if more else {}
    )
    given = x.bfloat16().contiguous(memory_format=LAST), t, c.bfloat16()
    assert error(faster(half)(*given, **told)[0], exact) <= error(half(*given, **told)[0], exact) * 1.1
    z = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(faster(parts.vae).decode(z)[0], parts.vae.decode(z)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        faster(parts.vae).encode(x[:, :3])[0].mean, parts.vae.encode(x[:, :3])[0].mean, rtol=1e-4, atol=1e-5
    )
