"""Upscaling networks: read from their files, and run over a picture tile by tile."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from modules.imaging.tiles import tiling
from modules.library.header import ModelFileError, open_regular, read_header
from modules.library.upscalers import SUPPORTED, architecture
from modules.postprocess import compact, rrdb
from modules.runtime.pickles import PickleError, load_pickle

WRAPPERS = ("params_ema", "params", "state_dict", "model", "model_state_dict")  # what training tools put weights into
OnTile = Callable[[int, int], None]  # done, of how many; may raise to end early


@dataclass(frozen=True)
class Network:
    module: nn.Module
    scale: int
    device: torch.device

    def run(self, image: Image.Image, tile: int = 192, overlap: int = 8, on_tile: OnTile | None = None) -> Image.Image:
        """RGB, `scale` times as large. `tile`: pixels a side, 0: the whole picture at once."""
        if tile <= 0:
            return self._run_tile(image)
        sides = min(tile, image.width), min(tile, image.height)  # A1111 pads small pictures with black instead
        plan = tiling(image.size, sides, min(overlap, min(sides) // 2))
        done = []
        for piece in plan.cut(image.convert("RGB")):
            done.append(self._run_tile(piece))
            if on_tile:
                on_tile(len(done), len(plan))
        return plan.scaled(self.scale).join(done)

    def _run_tile(self, image: Image.Image) -> Image.Image:
        # Channels in the order blue, green, red: A1111 feeds these networks so, though they were trained on RGB.
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1].transpose(2, 0, 1))
        fold = getattr(self.module, "squeeze", 1)  # networks of scale 1 and 2 fold their input, so its size must fit
        x = torch.from_numpy(pixels).to(self.device, torch.float32)[None] / 255
        right, below = -image.width % fold, -image.height % fold
        if right or below:
            x = nn.functional.pad(x, (0, right, 0, below), mode="replicate")
        with torch.inference_mode():
            y: Tensor = self.module(x)[0, :, : image.height * self.scale, : image.width * self.scale]
        if not torch.isfinite(y).all():
            raise ValueError("the upscaler's result is not a number (NaN); its file may be damaged")
        values = (y.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)[:, :, ::-1]))


def load_network(path: Path, device: torch.device) -> Network:
    """In float32. Raises ModelFileError with a sentence."""
    weights = _plain(_read(path))
    found = architecture({name: tuple(tensor.shape) for name, tensor in weights.items()})
    if found is None:
        raise ModelFileError(path, f"its architecture is not supported; {SUPPORTED}")
    kind, scale = found
    try:
        module: nn.Module = compact.build(weights) if kind == "compact" else rrdb.build(rrdb.modern(weights))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise ModelFileError(path, f"its tensors do not make a network of kind {kind} ({reason})") from None
    bad = next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise ModelFileError(path, f"its tensor {bad!r} holds values that are no numbers; download it again")
    return Network(module.eval().requires_grad_(False).to(device), scale, device)


def _read(path: Path) -> Mapping[str, Any]:
    with os.fdopen(open_regular(path), "rb") as file:
        start = file.read(16)
        if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
            read_header(path)  # refuses what is no sound file
            return dict(load_file(path))
        file.seek(0)
        try:
            content = load_pickle(file)
        except PickleError as error:
            raise ModelFileError(path, str(error)) from None
    if not isinstance(content, Mapping):
        raise ModelFileError(path, "it holds no weights by name; is it an upscaler?")
    return content


def _plain(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, in float32, out of what they are wrapped into and without the prefix of parallel training."""
    for wrapper in WRAPPERS:
        inside = content.get(wrapper)
        if isinstance(inside, Mapping):
            content = inside
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}
