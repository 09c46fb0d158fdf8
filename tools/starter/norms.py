"""GroupNorm that trains faster on a CPU.

PyTorch's backward pass over pictures in channels_last order takes, at two to four channels a group, longer than all of
the convolutions together: 47 % of a step of the VAE's training in bf16. Written as sums and products over whole
channels it takes less than a third of that, and the step 0.6 times as long.
"""

from typing import Any

import torch
from torch import Tensor, nn


def use_fast_norms(network: nn.Module, device: torch.device) -> None:
    """Changes the norms of `network`, whose pictures are to be in channels_last order; on a CPU only."""
    if device.type != "cpu":
        return
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FastGroupNorm  # has the same fields: copies, state and files stay as they are


class FastGroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:  # in attention
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = _Normalized.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return y


class _Normalized(torch.autograd.Function):
    """y = gamma (x - mean) / deviation + beta, mean and deviation over a group of channels (Wu and He 2018)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
        count, channels, height, width = x.shape
        y, mean, scale = torch.native_group_norm(x, gamma, beta, count, channels, height * width, groups, eps)
        ctx.save_for_backward(x, gamma, mean, scale)  # mean and 1 / deviation: (N, groups)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """dx = a dy + b x + c, with an a for each channel, and b and c for each group."""
        x = ctx.saved_tensors[0]
        exact = torch.promote_types(x.dtype, torch.float32)
        gamma, mean, scale = (saved.to(exact) for saved in ctx.saved_tensors[1:])
        (count, channels), (_, groups) = x.shape[:2], mean.shape
        each = channels // groups

        def places(picture: Tensor) -> Tensor:
            return picture.movedim(1, -1).reshape(count, -1, channels)

        def spread(of_groups: Tensor) -> Tensor:
            return of_groups.repeat_interleave(each, 1)  # (N, C)

        dy, seen = places(gradients[0]), places(x)
        total, moment = dy.sum(1, dtype=exact), (dy * seen).sum(1, dtype=exact)  # (N, C)
        dgamma = ((moment - total * spread(mean)) * spread(scale)).sum(0)
        group_total = (total * gamma).view(count, groups, each).sum(-1)
        group_moment = (moment * gamma).view(count, groups, each).sum(-1)
        size = each * dy.shape[1]
        b = (group_total * mean - group_moment) * scale**3 / size
        c = -b * mean - group_total * scale / size
        a, b, c = (factor.to(x.dtype)[:, None] for factor in (spread(scale) * gamma, spread(b), spread(c)))
        dx = torch.addcmul(c, dy, a).addcmul_(seen, b)
        dx = dx.reshape(count, *x.shape[2:], channels).movedim(-1, 1)
        return dx, dgamma, total.sum(0), None, None
