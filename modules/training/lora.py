"""Low-rank adaptation, Hu et al. (2021): W + (alpha / rank) · B A, where only A and B learn.

Works on any torch network; knows nothing of prompts, data or devices. Files are in the layout of kohya's scripts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
KOHYA_UNET = "lora_unet"


class Lora(nn.Module):
    """What is added to the output of one layer. It starts as nothing, because B is zero."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, alpha / rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            (high, wide), (down, right) = layer.kernel_size, layer.stride
            padding = (
                layer.padding if isinstance(layer.padding, str) else (int(layer.padding[0]), int(layer.padding[1]))
            )
            self.down = nn.Conv2d(layer.in_channels, rank, (high, wide), (down, right), padding, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x)) * self.scale
        return y


@dataclass(frozen=True)
class Adapter:
    """The low-rank parts of a network, by the names of its layers."""

    parts: nn.ModuleDict  # dots of the names are "/" in here, which ModuleDict allows

    def parameters(self) -> list[nn.Parameter]:
        return list(self.parts.parameters())

    def items(self) -> Iterator[tuple[str, Lora]]:
        for key, part in self.parts.items():
            assert isinstance(part, Lora)
            yield key.replace("/", "."), part


def make_adapter(
    network: nn.Module, rank: int, alpha: float, ends: tuple[str, ...] = ATTENTION, seed: int = 0
) -> Adapter:
    """For each linear and convolution layer whose name ends with one of `ends`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = nn.ModuleDict()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(ends):
                parts[name.replace(".", "/")] = Lora(layer, rank, alpha)
    if not parts:
        raise ValueError(f"the network has no layer whose name ends with one of {', '.join(ends)}")
    return Adapter(parts)


@contextmanager
def adapted(network: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Within it, the network computes with the adapter; its own weights are never touched."""
    handles: list[RemovableHandle] = []
    try:
        for name, part in adapter.items():
            handles.append(network.get_submodule(name).register_forward_hook(_adding(part)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def kohya_weights(adapter: Adapter, prefix: str = KOHYA_UNET) -> dict[str, Tensor]:
    """Tensors by kohya's names: `lora_unet_<layer with underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    weights: dict[str, Tensor] = {}
    for name, part in adapter.items():
        stem = f"{prefix}_{name.replace('.', '_')}"
        weights[f"{stem}.lora_down.weight"] = part.down.weight.detach().half().contiguous()
        weights[f"{stem}.lora_up.weight"] = part.up.weight.detach().half().contiguous()
        weights[f"{stem}.alpha"] = torch.tensor(part.alpha, dtype=torch.float16)
    return weights


def kohya_metadata(adapter: Adapter, facts: Mapping[str, str]) -> dict[str, str]:
    """What kohya's scripts write beside the tensors, as far as it is true here; `facts` are added to it."""
    _, first = next(iter(adapter.items()))
    known = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(first.down.weight.shape[0]),
        "ss_network_alpha": str(first.alpha),
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
    }
    return known | dict(facts)


def _adding(part: Lora) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added: Tensor = part(inputs[0])
        return output + added.to(output.dtype)

    return hook
