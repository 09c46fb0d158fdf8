"""The model under guidance, call by call of one pass: prompt against negative prompt, or against picture and nothing.
Knows the model at work and the prompts; nothing of noise levels and samplers."""

from collections.abc import Callable

import torch
from torch import Tensor

from modules.diffusion.guidance import cfg
from modules.families.family import Conditioning, Model
from modules.generation.prompts import Prompts, together

BeforeCall = Callable[[int, Tensor], None]  # number of the call, 0-based, and its timestep


class Guide:
    """`model` may change between two calls: a refiner takes over."""

    def __init__(
        self,
        model: Callable[[], Model],
        prompts: Prompts,
        scale: float,
        beside: Callable[[], Tensor | None] = lambda: None,
        image_scale: float = 1.5,
        before_call: BeforeCall | None = None,
    ):
        """`beside`: (B, model.image_channels, H, W), what the UNet takes beside the latent; `image_scale`: the weight
        of the picture against nothing, in models that edit pictures (4 image channels)."""
        self._model, self._prompts, self._scale = model, prompts, scale
        self._beside, self._image_scale, self._before_call = beside, image_scale, before_call
        self._calls = 0

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W) of unit variance, t scalar -> the guided noise."""
        return self.both(x, t)[0]

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided noise, and the noise without the prompt."""
        if self._before_call:
            self._before_call(self._calls, t)
        self._calls += 1
        if self._model().image_channels == 4:
            return self._edited(x, t)
        if self._scale == 1 and self._prompts.is_plain:  # guidance would change nothing
            alone = self._predict(x, t, self._prompts.next()[0], self._beside())
            return alone, alone
        return self._guided(x, t)

    def _guided(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Parts of a prompt (joined by AND) guide together."""
        prompts, beside = self._prompts, self._beside()
        cond, uncond = prompts.next()
        owners = torch.tensor(prompts.owners, device=x.device)  # (P,): the image of each part
        parts_x = x[owners]
        parts_beside = None if beside is None else beside[owners]
        if cond.cross.shape[1] == uncond.cross.shape[1]:  # one pass of the network
            both_beside = None if beside is None or parts_beside is None else torch.cat([parts_beside, beside])
            both = self._predict(torch.cat([parts_x, x]), t, together([cond, uncond]), both_beside)
            parts, without = both[: len(cond)], both[len(cond) :]
        else:
            parts = self._predict(parts_x, t, cond, parts_beside)
            without = self._predict(x, t, uncond, beside)
        if prompts.is_plain:
            return cfg(parts, without, self._scale), without
        weights = torch.tensor(prompts.weights, device=x.device).view(-1, 1, 1, 1)
        return without.index_add(0, owners, (parts - without[owners]) * weights * self._scale), without

    def _edited(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """InstructPix2Pix, Brooks et al. (2023), eq. 3: the prompt against the picture, the picture against nothing."""
        cond, uncond = self._prompts.next()
        beside = self._beside()
        assert beside is not None, "a model that edits pictures was given none"
        pictures = torch.cat([beside, beside, torch.zeros_like(beside)])
        three = together([cond, uncond, uncond])
        with_prompt, with_picture, without = self._predict(torch.cat([x, x, x]), t, three, pictures).chunk(3)
        guided = without + self._scale * (with_prompt - with_picture) + self._image_scale * (with_picture - without)
        return guided, without

    def _predict(self, x: Tensor, t: Tensor, conditioning: Conditioning, beside: Tensor | None) -> Tensor:
        return self._model().predict_eps(x, t.expand(len(x)), conditioning, beside)
