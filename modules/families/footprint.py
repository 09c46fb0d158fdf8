"""How much memory the networks of a model take: their weights, as they are, and what they compute with, by a formula
that bench/memory.py measures. In bytes; decides nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from modules.families.latent import LatentModel
from modules.families.vae import DECODER, ENCODER
from modules.runtime.device import Placement

# The most that lives at once in a call, in elements for each cell of each row, as multiples of the width of the
# network's first level. Measured with tensors of true sizes (docs/benchmarks.md). What convolutions borrow for
# themselves is not in it.
UNET_WITH_ATTENTION = 26  # on its first level, as SD 1.x and 2.x have it
UNET_WITHOUT = 15.75  # SDXL
SENT = "attn2.to_k"


@dataclass(frozen=True)
class Footprint:
    unet: int  # weights
    # Of them, when they are streamed: the two largest layers, one at work and one on its way; and those that make keys
    # of the prompt, which are sent ahead at every step though their results are kept (families/attention.py).
    unet_at_once: int
    text: int  # weights of all text encoders
    largest_text: int  # of the largest one
    vae: int
    unet_row_cell: float  # what a UNet computes with, for each cell of the latent of each row of a batch
    decode_pixel: float  # the same of a VAE, for each pixel
    encode_pixel: float

    @property
    def weights(self) -> int:
        return self.unet + self.text + self.vae


def footprint_of(model: LatentModel) -> Footprint:
    parts = dict(model.components)
    unet, vae = parts.pop("unet"), parts.pop("vae")
    text = [size_of(part) for part in parts.values()]
    layers = sorted(size_of(layer, recurse=False) for layer in unet.modules())
    width = unet.config.block_out_channels[0]
    attends = "Attn" in unet.config.down_block_types[0]
    return Footprint(
        unet=size_of(unet),
        unet_at_once=sum(layers[-2:])
        + sum(size_of(part) for name, part in unet.named_modules() if name.endswith(SENT)),
        text=sum(text),
        largest_text=max(text, default=0),
        vae=size_of(vae),
        unet_row_cell=(UNET_WITH_ATTENTION if attends else UNET_WITHOUT) * width * width_of(model.placement),
        decode_pixel=DECODER * vae.config.block_out_channels[0] * vae.dtype.itemsize,
        encode_pixel=ENCODER * vae.config.block_out_channels[0] * vae.dtype.itemsize,
    )


def width_of(placement: Placement) -> int:
    """Bytes of a number between the UNet's layers."""
    return 4 if placement.upcast else placement.unet_dtype.itemsize


def size_of(module: nn.Module, recurse: bool = True) -> int:
    """Bytes of its weights."""
    tensors: Iterable[Tensor] = [*module.parameters(recurse), *module.buffers(recurse)]
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)
