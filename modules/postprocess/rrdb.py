"""ESRGAN's generator (Wang et al. 2018), by the names of its first release and by those of Real-ESRGAN (Wang et al.
2021), at every scale that is a power of two."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pixel_unshuffle

SLOPE = 0.2  # of the leaky ReLUs
RESIDUAL = 0.2  # of what a block adds


class DenseBlock(nn.Module):
    """Five convolutions; each sees all that the ones before it made."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        for number in range(4):
            setattr(self, f"conv{number + 1}", nn.Conv2d(features + number * growth, growth, 3, padding=1))
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        known = [x]
        for number in range(4):
            conv = self.get_submodule(f"conv{number + 1}")
            known.append(leaky_relu(conv(torch.cat(known, dim=1)), SLOPE))
        change: Tensor = self.conv5(torch.cat(known, dim=1))
        return x + RESIDUAL * change


class ResidualInResidual(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + RESIDUAL * change


class RRDBNet(nn.Module):
    """(B, 3, H, W) in 0–1 -> (B, 3, scale·H, scale·W)."""

    def __init__(self, features: int, growth: int, blocks: int, ups: int, squeeze: int):
        super().__init__()
        self.ups, self.squeeze = ups, squeeze  # doublings; what the input is folded by before
        self.conv_first = nn.Conv2d(3 * squeeze**2, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualInResidual(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        for number in range(ups):
            setattr(self, f"conv_up{number + 1}", nn.Conv2d(features, features, 3, padding=1))
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(pixel_unshuffle(x, self.squeeze) if self.squeeze > 1 else x)
        x = x + self.conv_body(self.body(x))
        for number in range(self.ups):
            doubled = interpolate(x, scale_factor=2, mode="nearest")
            x = leaky_relu(self.get_submodule(f"conv_up{number + 1}")(doubled), SLOPE)
        pixels: Tensor = self.conv_last(leaky_relu(self.conv_hr(x), SLOPE))
        return pixels


def build(weights: Mapping[str, Tensor]) -> RRDBNet:
    """With names as `modern` gives them; the sizes are those of the tensors. Raises KeyError, RuntimeError for tensors
    that are missing or do not fit together."""
    features, channels = weights["conv_first.weight"].shape[:2]
    growth = weights["body.0.rdb1.conv1.weight"].shape[0]
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    ups = sum(1 for name in weights if re.fullmatch(r"conv_up\d\.weight", name))
    with torch.device("meta"):
        network = RRDBNet(features, growth, blocks, ups, {3: 1, 12: 2, 48: 4}[channels])
    network.load_state_dict(weights, assign=True)
    return network


def modern(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Real-ESRGAN's names for the tensors of any release."""
    last = max((int(name.split(".")[1]) for name in weights if re.fullmatch(r"model\.\d+\.weight", name)), default=0)
    return {_modern_name(name, last): tensor for name, tensor in weights.items()}


def _modern_name(name: str, last: int) -> str:
    """`last`: the number of the last layer, where layers have numbers."""
    name = re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)", r"body.\1.rdb\2", name)
    name = re.sub(r"^trunk_conv\.", "conv_body.", re.sub(r"^HRconv\.", "conv_hr.", name))
    name = re.sub(r"^upconv(\d)\.", r"conv_up\1.", name)
    block = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)", name)
    if block:
        return f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}"
    if re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", name):
        return f"conv_body.{name.rsplit('.', 1)[1]}"
    layer = re.fullmatch(r"model\.(\d+)\.(weight|bias)", name)
    if not layer:
        return name
    place = {0: "conv_first", last: "conv_last", last - 2: "conv_hr"}.get(int(layer[1]))
    return f"{place or f'conv_up{int(layer[1]) // 3}'}.{layer[2]}"
