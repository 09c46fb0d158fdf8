"""Random networks, checked against the architecture written down a second time: plain functions over the weights, by
the names of the files that people have."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from modules.library.header import ModelFileError
from modules.library.upscalers import UpscalerLibrary
from modules.postprocess.networks import load_network
from modules.postprocess.upscale import Upscalers

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def conv(weights: Weights, name: str, outs: int, ins: int) -> None:
    generator = torch.Generator().manual_seed(len(weights))
    weights[f"{name}.weight"] = torch.randn(outs, ins, 3, 3, generator=generator) * 0.1
    weights[f"{name}.bias"] = torch.randn(outs, generator=generator) * 0.1


def rrdb_file(ups: int = 2, ins: int = 3, features: int = 6, growth: int = 4, blocks: int = 2) -> Weights:
    """Real-ESRGAN's names."""
    weights: Weights = {}
    conv(weights, "conv_first", features, ins)
    for block in range(blocks):
        for dense in range(1, 4):
            for number in range(4):
                conv(weights, f"body.{block}.rdb{dense}.conv{number + 1}", growth, features + number * growth)
            conv(weights, f"body.{block}.rdb{dense}.conv5", features, features + 4 * growth)
    for name in ("conv_body", *(f"conv_up{number + 1}" for number in range(ups)), "conv_hr"):
        conv(weights, name, features, features)
    conv(weights, "conv_last", 3, features)
    return weights


def first_release(weights: Mapping[str, Tensor], ups: int) -> Weights:
    """The same tensors by the names of ESRGAN's first files: the number of each layer in a sequence."""
    places = {"conv_first": "model.0", "conv_hr": f"model.{3 * ups + 2}", "conv_last": f"model.{3 * ups + 4}"}
    places |= {f"conv_up{number + 1}": f"model.{3 * number + 3}" for number in range(ups)}
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    places["conv_body"] = f"model.1.sub.{blocks}"
    renamed = {}
    for name, tensor in weights.items():
        layer, kind = name.rsplit(".", 1)
        if layer.startswith("body."):
            _, block, dense, number = layer.split(".")
            layer = f"model.1.sub.{block}.{dense.upper()}.{number}.0"
        renamed[f"{places.get(layer, layer)}.{kind}"] = tensor
    return renamed


def second_release(weights: Mapping[str, Tensor]) -> Weights:
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in (("body.", "RRDB_trunk."), ("rdb", "RDB"), ("conv_hr", "HRconv"), ("conv_up", "upconv")):
            name = name.replace(ours, theirs) if not name.startswith("conv_body") else name
        renamed[name.replace("conv_body", "trunk_conv")] = tensor
    return renamed


def rrdb_by_hand(weights: Weights, x: Tensor, ups: int, fold: int = 1) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    x = first = layer("conv_first", F.pixel_unshuffle(x, fold))
    block = 0
    while f"body.{block}.rdb1.conv1.weight" in weights:
        into = x
        for dense in ("rdb1", "rdb2", "rdb3"):
            stack = x
            for number in range(1, 5):
                stack = torch.cat([stack, act(layer(f"body.{block}.{dense}.conv{number}", stack))], 1)
            x = x + 0.2 * layer(f"body.{block}.{dense}.conv5", stack)
        x, block = into + 0.2 * x, block + 1
    x = first + layer("conv_body", x)
    for number in range(ups):
        x = act(layer(f"conv_up{number + 1}", x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return layer("conv_last", act(layer("conv_hr", x)))


def compact_file(scale: int = 4, features: int = 5, convolutions: int = 3) -> Weights:
    weights: Weights = {}
    conv(weights, "body.0", features, 3)
    weights["body.1.weight"] = torch.linspace(0.1, 0.5, features)
    for number in range(convolutions):
        conv(weights, f"body.{2 * number + 2}", features, features)
        weights[f"body.{2 * number + 3}.weight"] = torch.linspace(-0.1, 0.3, features)
    conv(weights, f"body.{2 * convolutions + 2}", 3 * scale * scale, features)
    return weights


def compact_by_hand(weights: Weights, x: Tensor, scale: int) -> Tensor:
    last = max(int(name.split(".")[1]) for name in weights)
    y = x
    for number in range(0, last + 1, 2):
        y = F.conv2d(y, weights[f"body.{number}.weight"], weights[f"body.{number}.bias"], padding=1)
        if number < last:
            slope = weights[f"body.{number + 1}.weight"].view(-1, 1, 1)
            y = torch.where(y > 0, y, slope * y)
    return F.pixel_shuffle(y, scale) + x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def picture(width: int = 20, height: int = 14) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> Tensor:
    """(1, 3, H, W), blue first, as A1111 feeds networks."""
    return torch.from_numpy(np.asarray(image)[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255


def as_bytes(y: Tensor) -> np.ndarray:
    return (y[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()[:, :, ::-1]


@pytest.mark.parametrize("release", [1, 2, 3])
@pytest.mark.parametrize("ups", [1, 2, 3])
def test_rrdb_of_every_release(release: int, ups: int, tmp_path: Path):
    weights = rrdb_file(ups)
    named = {1: first_release(weights, ups), 2: second_release(weights), 3: weights}[release]
    torch.save({"params_ema": named} if release == 3 else named, tmp_path / "x.pth")
    network = load_network(tmp_path / "x.pth", CPU)
    assert network.scale == 2**ups
    ours = np.asarray(network.run(picture(), tile=0))
    assert np.abs(ours.astype(int) - as_bytes(rrdb_by_hand(weights, pixels(picture()), ups))).max() <= 1


@pytest.mark.parametrize(("ins", "fold", "scale"), [(12, 2, 2), (48, 4, 1)])
def test_rrdb_that_folds_its_input(ins: int, fold: int, scale: int, tmp_path: Path):
    weights = rrdb_file(2, ins)
    save_file(weights, tmp_path / "x.safetensors")
    network = load_network(tmp_path / "x.safetensors", CPU)
    image = picture(20, 16)
    theirs = as_bytes(rrdb_by_hand(weights, pixels(image), 2, fold))
    assert network.scale == scale and np.abs(np.asarray(network.run(image, 0)).astype(int) - theirs).max() <= 1
    assert network.run(picture(19, 13), 0).size == (19 * scale, 13 * scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_compact(scale: int, tmp_path: Path):
    weights = compact_file(scale)
    torch.save({"params": {f"module.{name}": tensor.half() for name, tensor in weights.items()}}, tmp_path / "x.pth")
    network = load_network(tmp_path / "x.pth", CPU)
    ours = np.asarray(network.run(picture(), tile=0))
    assert network.scale == scale
    assert np.abs(ours.astype(int) - as_bytes(compact_by_hand(weights, pixels(picture()), scale))).max() <= 1


def test_tiles_give_the_whole(tmp_path: Path):
    save_file(compact_file(), tmp_path / "x.safetensors")
    network = load_network(tmp_path / "x.safetensors", CPU)
    told: list[tuple[int, int]] = []
    image = picture(70, 50)
    tiled = network.run(image, tile=32, overlap=12, on_tile=lambda done, of: told.append((done, of)))
    difference = np.asarray(tiled).astype(int) - np.asarray(network.run(image, 0))
    assert tiled.size == (280, 200) and np.abs(difference).mean() < 1 and told[-1] == (6, 6)
    for side, overlap in ((16, 48), (512, 8), (1, 0)):  # settings that do not fit together, or the picture
        assert network.run(picture(5, 3), side, overlap).size == (20, 12)


def test_upscalers_by_name(tmp_path: Path):
    (tmp_path / "ESRGAN").mkdir()
    save_file(rrdb_file(1), tmp_path / "ESRGAN" / "2x-Tiny.safetensors")
    upscalers = Upscalers(UpscalerLibrary({"ESRGAN": (tmp_path / "ESRGAN",)}), CPU)
    assert upscalers.library.find("2x-tiny").scale == 2
    assert upscalers.to_size("2x-Tiny")(picture(16, 16), 56, 48).size == (56, 48)
    first = next(iter(upscalers._loaded.values()))
    upscalers.get("2x-Tiny")
    assert next(iter(upscalers._loaded.values())) is first
    save_file(rrdb_file(2), tmp_path / "ESRGAN" / "2x-Tiny.safetensors")
    assert upscalers.get("2x-Tiny")(picture(8, 8), 2).size == (32, 32)  # the file is another one by now


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_network(path, CPU)
    assert str(caught.value).startswith(path.name)
    return caught.value.reason


def test_refusals_are_sentences(tmp_path: Path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(3)}, path)
    assert "architecture is not supported" in refusal(path)
    torch.save([1, 2], path)
    assert "holds no weights by name" in refusal(path)
    broken = rrdb_file()
    del broken["body.1.rdb2.conv3.bias"]
    torch.save(broken, path)
    assert "do not make a network of kind RRDB" in refusal(path)
    torch.save(compact_file() | {"body.0.bias": torch.full((5,), torch.nan)}, path)
    assert "'body.0.bias' holds values that are no numbers" in refusal(path)
    path.write_bytes(path.read_bytes()[:-200])
    assert "damaged" in refusal(path)
    path.write_bytes(b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.")
    assert "contains code" in refusal(path) or "damaged" in refusal(path)


def test_archives_that_grow_are_refused(tmp_path: Path):
    path = tmp_path / "x.pth"
    torch.save(compact_file(), path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert "would grow" in refusal(tmp_path / "y.pth")
