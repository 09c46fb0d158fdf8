"""SD 2.x: what its UNet predicts, and relatives that are refused."""

from pathlib import Path

import pytest
import torch

from modules.families.family import TextOptions
from modules.families.loader import read_model
from modules.families.sd2 import SD2, prediction_by_trial
from modules.library.header import ModelFileError
from tests.tiny import FP32, save_tiny_of, tiny_parts

V768 = """model:
  params:
    parameterization: v
    unet_config: {params: {num_head_channels: 16}}
    cond_stage_config: {target: open_clip}
"""


def test_the_yaml_tells_what_is_predicted(tmp_path: Path) -> None:
    path = save_tiny_of(tmp_path / "model.safetensors", "sd2", tiny_parts("sd2"))
    config = tmp_path / "model.yaml"
    config.write_text(V768, "utf-8")
    model = read_model(path, FP32, config)
    assert isinstance(model, SD2)
    assert model.prediction == "v_prediction"
    config.write_text(V768.replace("    parameterization: v\n", ""), "utf-8")
    model = read_model(path, FP32, config)
    assert isinstance(model, SD2)
    assert model.prediction == "epsilon"


def test_the_trial_tells_where_nobody_says() -> None:
    unet = tiny_parts("sd2").unet
    with torch.no_grad():
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.fill_(0.5)  # the same grey back, as of noise
        assert prediction_by_trial(unet, FP32) == "epsilon"
        unet.conv_out.bias.fill_(-0.6)
        assert prediction_by_trial(unet, FP32) == "v_prediction"


@torch.inference_mode()
def test_v_becomes_eps(tmp_path: Path) -> None:
    path = save_tiny_of(tmp_path / "model.safetensors", "sd2", tiny_parts("sd2"), v_pred=torch.zeros(0))
    model = read_model(path, FP32)
    assert isinstance(model, SD2)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([400.0])
    cond = model.encode(["a cat"], TextOptions())
    v, a = model.predict(x, t, cond), model.alphas_cumprod[400]
    torch.testing.assert_close(model.predict_eps(x, t, cond), a.sqrt() * v + (1 - a).sqrt() * x)


@torch.inference_mode()
def test_clip_skip_does_nothing_and_empty_places_are_0(tmp_path: Path) -> None:
    parts = tiny_parts("sd2")
    model = read_model(save_tiny_of(tmp_path / "model.safetensors", "sd2", parts), FP32)
    ids = torch.tensor([[49406, 320, 2368, 49407, *[0] * 73]])
    expected = parts.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(model.encode(["a cat"], TextOptions()).cross, expected)
    torch.testing.assert_close(model.encode(["a cat"], TextOptions(clip_skip=2)).cross, expected)


@pytest.mark.parametrize(("tensor", "kind"), [("depth_model.model.x", "depth"), ("noise_augmentor.x", "unCLIP")])
def test_relatives_are_refused(tmp_path: Path, tensor: str, kind: str) -> None:
    path = save_tiny_of(tmp_path / "model.safetensors", "sd2", tiny_parts("sd2"), **{tensor: torch.zeros(1)})
    with pytest.raises(ModelFileError, match=rf"model\.safetensors: it is an SD 2\.x {kind} model"):
        read_model(path, FP32)


@torch.inference_mode()
def test_x0_is_exact_at_the_noisiest_level(tmp_path: Path) -> None:
    more = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    model = read_model(save_tiny_of(tmp_path / "model.safetensors", "sd2", tiny_parts("sd2"), **more), FP32)
    last = model.alphas_cumprod[-1]
    sigma = ((1 - last) / last).sqrt()
    assert sigma > 4500
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * sigma, torch.tensor([999.0])
    cond, uncond = model.encode(["a cat"], TextOptions()), model.encode([""], TextOptions())
    z = x / (sigma**2 + 1).sqrt()
    v = model.predict(z, t, uncond) * -6 + model.predict(z, t, cond) * 7
    s = sigma.double()
    exact = x.double() / (s**2 + 1) - v.double() * s / (s**2 + 1).sqrt()
    error = (model.x0_of(v, x, sigma).double() - exact).norm() / exact.norm()
    by_eps = x - sigma * model.eps_of(v, z, t)
    assert error < 1e-6
    assert (by_eps.double() - exact).norm() / exact.norm() < 1e-2  # the same formula, but for fp32's rounding
