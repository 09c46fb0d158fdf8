"""Real-ESRGAN's small network (SRVGGNetCompact, Wang et al. 2021): convolutions at the picture's own size, whose last
one holds all pixels of the larger picture."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle


class CompactNet(nn.Module):
    """(B, 3, H, W) in 0–1 -> (B, 3, scale·H, scale·W): what it computes is added to the repeated pixels."""

    def __init__(self, features: int, convolutions: int, scale: int):
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale * scale, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.body(x), self.scale) + interpolate(x, scale_factor=self.scale, mode="nearest")


def build(weights: Mapping[str, Tensor]) -> CompactNet:
    """The sizes are those of the tensors. Raises KeyError, RuntimeError for tensors that do not fit together."""
    features = weights["body.0.weight"].shape[0]
    last = max(int(name.split(".")[1]) for name in weights)
    scale = round((weights[f"body.{last}.weight"].shape[0] / 3) ** 0.5)
    with torch.device("meta"):
        network = CompactNet(features, last // 2 - 1, scale)
    network.load_state_dict(weights, assign=True)
    return network
