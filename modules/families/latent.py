"""What the models of Stable Diffusion's line share once they are loaded: a UNet over latents, and a VAE. A family adds
its text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from modules.diffusion.prediction import (
    c_in,
    eps_to_x0,
    scaled_linear_alphas_cumprod,
    sigmas_from,
    t_to_sigma,
    v_to_eps,
    v_to_x0,
    zero_terminal_snr,
)
from modules.families.family import Conditioning, LatentFormat, Model, TextOptions
from modules.families.hints import Hints, Prediction, marked
from modules.families.unet import BESIDE
from modules.families.vae import Vae
from modules.library.header import Header
from modules.runtime.device import Placement


class Trained(NamedTuple):
    """How a UNet was trained."""

    prediction: Prediction
    alphas_cumprod: Tensor  # (T,)


class LatentModel(ABC):
    """A loaded checkpoint (see family.Model)."""

    family: str

    def __init__(
        self,
        unet: Any,
        vae: Vae,
        text_encoders: Mapping[str, Any],
        trained: Trained,
        placement: Placement,
    ):
        self.unet, self.vae, self.placement = unet, vae, placement
        self.prediction, self.alphas_cumprod = trained
        self.latent: LatentFormat = vae.latent
        self.device = placement.device
        self.image_channels = unet.config.in_channels - vae.latent.channels
        self._text_encoders = text_encoders
        self.taken: Mapping[str, str] = {}
        self._sigmas: tuple[Tensor, Tensor] | None = None  # alphas_cumprod, and the sigmas on the device
        self._crosses: Any = WeakTensorKeyDictionary()  # conditionings in the UNet's dtype, as long as they live

    @property
    def components(self) -> Mapping[str, Any]:
        return {"unet": self.unet, "vae": self.vae.network, **self._text_encoders}

    @abstractmethod
    def encode(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Conditioning:
        """See family.Model."""

    @abstractmethod
    def text_key(self, texts: Sequence[str], options: TextOptions, negative: bool = False) -> Hashable:
        """See family.Model."""

    def predict_eps(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None
    ) -> Tensor:
        return self.eps_of(self.predict(x, timestep, conditioning, beside), x, timestep)

    def eps_of(self, predicted: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return predicted
        sigma = t_to_sigma(timestep.to(x.device), self._sigmas_at(x.device))
        return v_to_eps(x, predicted, c_in(sigma).square().view(-1, 1, 1, 1))

    def _sigmas_at(self, device: torch.device) -> Tensor:
        """(T,): copied there once, for a copy waits until the device has done all that it has to do."""
        kept = self._sigmas
        if kept is None or kept[0] is not self.alphas_cumprod or kept[1].device != device:
            kept = self._sigmas = self.alphas_cumprod, sigmas_from(self.alphas_cumprod.float().to(device))
        return kept[1]

    def x0_of(self, predicted: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return (eps_to_x0 if self.prediction == "epsilon" else v_to_x0)(x, predicted, sigma)

    def predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning, beside: Tensor | None = None) -> Tensor:
        dtype = self.placement.unet_dtype
        if self.image_channels:
            if beside is None:
                raise ValueError(
                    f"this is an {BESIDE[self.image_channels]} model: it needs a picture beside the latent"
                )
            x = torch.cat([x, beside.to(x)], dim=1)
        x = x.to(torch.float32 if self.placement.upcast else dtype)
        if self.placement.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        cross = self._taken(conditioning.cross, dtype)
        added = None if conditioning.vector is None else self._added(conditioning.vector)
        predicted: Tensor = self.unet(x, timestep, cross, added_cond_kwargs=added, return_dict=False)[0]
        return predicted.float()

    def _taken(self, cross: Tensor, dtype: torch.dtype) -> Tensor:
        """In the UNet's dtype, the same tensor at every call: what the UNet makes of it is kept as long as it lives."""
        if cross.dtype is dtype or torch.is_grad_enabled():
            return cross.to(dtype)
        taken: Tensor | None = self._crosses.get(cross)
        if taken is None or taken.dtype is not dtype:
            taken = self._crosses[cross] = cross.to(dtype)
        return taken

    def _added(self, vector: Tensor) -> Mapping[str, Tensor]:
        """The vector of a conditioning as the UNet takes it; nothing, in families that have none."""
        return {}

    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        return self.vae.encode(pixels, noise)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def glimpse(self, latents: Tensor) -> Tensor:
        return self.vae.glimpse(latents)


def trained_as(facts: Mapping[str, Any], header: Header, hints: Hints, prediction: Prediction = "epsilon") -> Trained:
    """`facts`: of the family. `prediction`: what the UNet predicts, where neither the file nor the .yaml says so."""
    alphas_cumprod = scaled_linear_alphas_cumprod(facts["timesteps"], facts["beta_start"], facts["beta_end"])
    if marked(header, "ztsnr") or hints.zero_terminal_snr:
        alphas_cumprod = zero_terminal_snr(alphas_cumprod)
    return Trained(stated_prediction(header, hints) or prediction, alphas_cumprod)


def stated_prediction(header: Header, hints: Hints) -> Prediction | None:
    """What the file, or the .yaml beside it, says that its UNet predicts."""
    return hints.prediction or ("v_prediction" if marked(header, "v_pred") else None)


@contextmanager
def noise_levels(model: Model, zero_snr: bool, downcast: bool) -> Iterator[None]:
    """Within, the model's noise levels are as the settings want them: with `downcast` they are of half precision, and
    so is what is computed of them, as in old versions of A1111; `zero_snr` stretches them until the last one is pure
    noise."""
    before = model.alphas_cumprod
    if downcast:
        model.alphas_cumprod = model.alphas_cumprod.half()
    if zero_snr:  # which half precision has no numbers for
        model.alphas_cumprod = zero_terminal_snr(model.alphas_cumprod.float())
    try:
        yield
    finally:
        model.alphas_cumprod = before
