"""Checkpoints in float8, and UNets that stay in float8: what is read, what is kept, what a LoRA does to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.families import fp8, ldm
from modules.families.family import Conditioning
from modules.families.loader import read_model
from modules.families.networks.applied import applied
from modules.families.residence import streaming
from modules.library.header import ModelFileError
from modules.library.network_tags import Network
from modules.runtime.memory import Memory
from tests.families.networks.files import network_of
from tests.tiny import FP32, save_tiny

KEPT = replace(FP32, fp8=True)


def in_float8(path: Path, dtype: torch.dtype, scaled: bool = False) -> tuple[Path, dict[str, Tensor]]:
    """A copy of the file with its UNet's weights so, and what they are now worth."""
    tensors, worth = load_file(path), {}
    if scaled:
        tensors["scaled_fp8"] = torch.zeros(0, dtype=dtype)
    for name, tensor in list(tensors.items()):
        if name.startswith(ldm.UNET) and tensor.ndim > 1:
            scale = tensor.abs().max() / 448 if scaled else torch.tensor(1.0)
            tensors[name] = (tensor / scale).to(dtype)
            worth[name] = tensors[name].float() * scale
            if scaled:
                tensors[name.replace(".weight", ".scale_weight")] = scale
    path = path.with_stem(f"{path.stem}-{str(dtype)[6:]}-{scaled}")
    save_file(tensors, path, {"format": "pt"})
    return path, worth


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def weights_of(model: Any) -> dict[str, Tensor]:
    """The UNet's, by the file's names, as numbers."""
    layers = dict(model.unet.named_modules())
    found = {}
    for own, theirs in ldm.unet_names(model.unet.state_dict(), model.unet.config.layers_per_block):
        layer = layers[own.rpartition(".")[0]]
        is_weight = own.endswith(".weight") and isinstance(layer, fp8.Kept)
        found[theirs] = layer.whole(torch.float32) if is_weight else model.unet.state_dict()[own]
    return found


@pytest.mark.parametrize("scaled", [False, True])
def test_files_in_float8_are_read_as_they_are_worth(tmp_path: Path, scaled: bool) -> None:
    path, worth = in_float8(save_tiny(tmp_path), torch.float8_e4m3fn, scaled)
    for placement in (FP32, KEPT):
        read = weights_of(read_model(path, placement))
        for name, tensor in worth.items():
            torch.testing.assert_close(read[name], tensor.reshape(read[name].shape), rtol=1e-6, atol=0)


def test_the_other_float8_is_read_too(tmp_path: Path) -> None:
    path, worth = in_float8(save_tiny(tmp_path), torch.float8_e5m2)
    read = weights_of(read_model(path, FP32))
    assert all(torch.equal(read[name], tensor.reshape(read[name].shape)) for name, tensor in worth.items())
    kept = weights_of(read_model(path, KEPT))
    for name, tensor in worth.items():  # its exponents reach further down; below, it is rounded
        torch.testing.assert_close(kept[name], tensor.reshape(kept[name].shape), rtol=0, atol=2**-17)


def test_a_scale_of_another_size_is_refused(tmp_path: Path) -> None:
    path, _ = in_float8(save_tiny(tmp_path), torch.float8_e4m3fn, scaled=True)
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".scale_weight"))
    save_file({**tensors, name: torch.ones(5)}, path)
    with pytest.raises(ModelFileError, match=r"scale_weight has 5 numbers; one, or \d+, one an output"):
        read_model(path, FP32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """One checkpoint in bf16, kept in float8, and that with all bits in main memory."""
    path = save_tiny(tmp_path_factory.mktemp("fp8"))
    half = replace(FP32, unet_dtype=torch.bfloat16, channels_last=True)
    plain, kept = read_model(path, half), read_model(path, replace(half, fp8=True))
    return plain, kept, read_model(path, replace(half, fp8=True, fp8_full=True))


def test_memory_halves(models: Any) -> None:
    plain, kept, _ = models
    whole, less, scales = (
        sum(tensor.nbytes for tensor in tensors)
        for tensors in (plain.unet.parameters(), kept.unet.parameters(), kept.unet.buffers())
    )
    large = [
        weight
        for name, weight in plain.unet.named_parameters()
        if weight.ndim > 1 and not name.startswith(("conv_in", "conv_out", "time_embedding"))
    ]
    assert whole - less == sum(weight.nbytes for weight in large) // 2
    assert scales < 0.02 * whole
    assert kept.unet.dtype is torch.bfloat16
    assert kept.unet.up_blocks[0].resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def predicted(model: Any, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 32, generator=generator)
    with torch.inference_mode():
        return model.predict(x, torch.tensor([500.0, 20.0]), Conditioning(text))


def decibels(one: Tensor, other: Tensor) -> float:
    """Signal to noise."""
    return float(10 * torch.log10(other.square().mean() / (one - other).square().mean()))


def test_what_it_predicts_is_close(models: Any) -> None:
    plain, kept, _ = models
    assert 18 < decibels(predicted(kept), predicted(plain)) < 60


def a_lora(folder: Path, model: Any, size: float) -> Network:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in model.unet.named_modules():
        if name.endswith(("to_q", "to_out.0", "conv1", "norm1")) and isinstance(module, nn.Linear | nn.Conv2d):
            stem, weight = f"lora_unet_{name.replace('.', '_')}", module.weight
            down = torch.randn(4, *weight.shape[1:], generator=generator)
            up = torch.randn(weight.shape[0], 4, *[1] * (weight.ndim - 2), generator=generator)
            scale = size * float(weight.float().std()) / (2 * float(down.std()))
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up * scale}
            tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    save_file(tensors, folder / "lora.safetensors")
    return network_of(folder / "lora.safetensors", "lora")


def share_of(change: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[float]:
    """How much of what each layer was to change it has changed."""
    return [float((change[name] * tensor).sum() / tensor.square().sum()) for name, tensor in wanted.items()]


def moved(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() - other[name].float() for name, tensor in one.items() if (tensor != other[name]).any()}


@pytest.mark.parametrize("full", [False, True])
def test_a_small_lora_is_not_rounded_away(models: Any, tmp_path: Path, full: bool) -> None:
    """Of a twentieth of the weights' size, where the grid's steps are an eighth; and it leaves nothing behind."""
    plain, model = models[0], models[2 if full else 1]
    network = a_lora(tmp_path, plain, 0.05)
    own, kept, before = copied(weights_of(plain)), copied(weights_of(model)), predicted(model)
    fulls = [layer.full for layer in model.unet.modules() if isinstance(layer, fp8.Kept)]
    assert all((tensor is not None) == full for tensor in fulls)
    with applied(plain, [network]):
        wanted = moved(weights_of(plain), own)
    assert len(wanted) == 39
    with applied(model, [network]):
        once, changed = moved(weights_of(model), kept), predicted(model)
    with applied(model, [network, network]):
        twice = moved(weights_of(model), kept)
    assert all(0.8 < share < 1.2 for share in share_of(once, wanted))
    assert all(1.7 < share < 2.3 for share in share_of(twice, wanted))
    assert not torch.equal(changed, before)
    assert not moved(weights_of(model), kept)
    after = [layer.full for layer in model.unet.modules() if isinstance(layer, fp8.Kept)]
    assert all(one is other for one, other in zip(fulls, after, strict=True))
    with applied(model, [network], functional=True):
        assert not moved(weights_of(model), kept)
        beside = predicted(model)
    assert decibels(beside - before, changed - before) > 3
    assert torch.equal(predicted(model), before)


def test_streamed_it_gives_the_same(models: Any) -> None:
    """Weights and scales come and go together."""
    model = models[1]
    before = predicted(model)
    with streaming(model.unet, Memory(torch.device("cpu"))):
        assert torch.equal(predicted(model), before)
    assert torch.equal(predicted(model), before)
