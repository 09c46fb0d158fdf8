"""The model under guidance, call by call of one pass: prompt against negative prompt, or against picture and nothing.
Knows the model at work and the prompts; nothing of noise levels and samplers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modules.diffusion.guidance import cfg
from modules.diffusion.prediction import sigmas_from, t_to_sigma
from modules.families.family import EDITING, Conditioning, Model
from modules.generation.prompts import Prompts, together
from modules.generation.skipping import Skipping

KEPT_CUT = 4  # conditionings that are kept in parts: prompt and negative prompt, and those before

BeforeCall = Callable[[int, float], None]  # number of the call, 0-based, and its timestep


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
        skipping: Skipping | None = None,
        at_once: bool = True,
        rows: Callable[[], int | None] = lambda: None,
    ):
        """`beside`: (B, model.image_channels, H, W), what the UNet takes beside the latent; `image_scale`: the weight
        of the picture against nothing, in models that edit pictures (4 image channels); `at_once`: prompt and negative
        prompt go through the network together, which is faster and takes more memory; `rows`: at most so many at once,
        where memory is short."""
        self._model, self._prompts, self._scale = model, prompts, scale
        self._beside, self._image_scale, self._before_call = beside, image_scale, before_call
        self._skipping, self._at_once, self._rows = skipping, at_once, rows
        self._calls = 0
        self._ahead: tuple[int, Sequence[float]] = (0, ())  # timesteps of the calls from this one on
        self._cut: dict[
            tuple[int, int], tuple[Conditioning, list[Conditioning]]
        ] = {}  # whole, and its parts of so many
        self._levels: tuple[Tensor, Tensor] | None = None  # a model's alphas_cumprod, and its sigmas in main memory
        self._moved: tuple[Tensor, Tensor] | None = None
        self._joined: tuple[tuple[Conditioning, ...], Conditioning] | None = None

    @property
    def asks_for_timesteps(self) -> bool:
        """As numbers. Without `expect`, each is read from the device, which waits for all that it has to do."""
        return self._before_call is not None or (self._skipping is not None and self._skipping.is_on)

    def expect(self, timesteps: Sequence[float]) -> None:
        """Those of the calls to come, in their order."""
        self._ahead = self._calls, timesteps

    def predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W) of unit variance, t scalar -> what the model predicts, guided."""
        return self._predicted(x, t, alone=self._scale == 1 and self._prompts.is_plain)[0]

    def x0_of(self, predicted: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent in x = x0 + sigma · eps, by what `predicted` gave just now."""
        return self._model().x0_of(predicted, x, sigma)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided noise in x."""
        return self._model().eps_of(self.predicted(x, t), x, t.expand(len(x)))

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided noise, and the noise without the prompt."""
        guided, without = self._predicted(x, t, alone=False)
        model, timesteps = self._model(), t.expand(len(x))
        return model.eps_of(guided, x, timesteps), model.eps_of(without, x, timesteps)

    def release(self) -> None:
        """The pass is over: nothing here keeps a model in memory."""
        self._prompts.encode_with(None)
        self._joined = self._moved = self._levels = None
        self._cut.clear()

    def notes(self) -> dict[str, object]:
        """What the infotext says of this pass, by now."""
        skipped = self._skipping.notes if self._skipping else {}
        padding = {"chunks": "Pad conds", "v0": "Pad conds v0"}
        return {**skipped, **({padding[self._prompts.padding]: True} if self._prompts.padded else {})}

    def _predicted(self, x: Tensor, t: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
        """The guided prediction, and the one without the prompt. `alone`: guidance would change nothing, and nobody
        wants the latter."""
        call, self._calls = self._calls, self._calls + 1
        if self._before_call:
            self._before_call(call, self._timestep(call, t))
        if self._model().image_channels == EDITING:
            return self._edited(x, t)
        skipping = self._skipping if self._skipping and self._skipping.is_on else None
        skips = skipping is not None and skipping.skips(call, self._sigma(self._timestep(call, t)))
        return self._guided(x, t, alone or skips)

    def _guided(self, x: Tensor, t: Tensor, without_negative: bool) -> tuple[Tensor, Tensor]:
        """Parts of a prompt (joined by AND) guide together. `without_negative`: the first part takes the place of the
        negative prompt."""
        prompts, beside = self._prompts, self._beside()
        cond, uncond = prompts.next()
        parts_x, parts_beside = x, beside
        if not prompts.is_plain:
            owners, weights = self._shares(x.device)
            parts_x, parts_beside = x[owners], None if beside is None else beside[owners]
        if without_negative:
            parts = self._predict(parts_x, t, cond, parts_beside)
            firsts = [prompts.owners.index(image) for image in range(len(x))]
            without = parts if prompts.is_plain else parts[firsts]
        elif self._at_once and cond.cross.shape[1] == uncond.cross.shape[1]:
            both_beside = None if beside is None or parts_beside is None else torch.cat([parts_beside, beside])
            both = self._predict(torch.cat([parts_x, x]), t, self._together(cond, uncond), both_beside)
            parts, without = both[: len(cond)], both[len(cond) :]
        else:
            parts = self._predict(parts_x, t, cond, parts_beside)
            without = self._predict(x, t, uncond, beside)
        if prompts.is_plain:
            return cfg(parts, without, self._scale), without
        return without.index_add(0, owners, (parts - without[owners]) * weights * self._scale), without

    def _together(self, *conditionings: Conditioning) -> Conditioning:
        """In one batch, made anew only where a prompt has changed."""
        if self._joined is None or [*map(id, self._joined[0])] != [*map(id, conditionings)]:
            self._joined = conditionings, together(conditionings)
        return self._joined[1]

    def _shares(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(P,) the image of each part, (P, 1, 1, 1) its weight: moved to the device once."""
        if self._moved is None:
            owners, weights = torch.tensor(self._prompts.owners), torch.tensor(self._prompts.weights)
            self._moved = owners.to(device), weights.view(-1, 1, 1, 1).to(device)
        return self._moved

    def _edited(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """InstructPix2Pix, Brooks et al. (2023), eq. 3: the prompt against the picture, the picture against nothing."""
        cond, uncond = self._prompts.next()
        beside = self._beside()
        assert beside is not None, "a model that edits pictures was given none"
        pictures = torch.cat([beside, beside, torch.zeros_like(beside)])
        three = self._together(cond, uncond, uncond)
        with_prompt, with_picture, without = self._predict(torch.cat([x, x, x]), t, three, pictures).chunk(3)
        guided = without + self._scale * (with_prompt - with_picture) + self._image_scale * (with_picture - without)
        return guided, without

    def _predict(self, x: Tensor, t: Tensor, conditioning: Conditioning, beside: Tensor | None) -> Tensor:
        model, most = self._model(), self._rows() or len(x)
        if most >= len(x):
            return model.predict(x, t.expand(len(x)), conditioning, beside)
        somes, givens = torch.split(x, most), [None] * len(x) if beside is None else torch.split(beside, most)
        parts = zip(somes, givens, self._parts(conditioning, most), strict=False)
        return torch.cat([model.predict(some, t.expand(len(some)), part, given) for some, given, part in parts])

    def _parts(self, conditioning: Conditioning, most: int) -> list[Conditioning]:
        """The same ones as long as no prompt changes: what the network makes of them is kept by what they are."""
        known = self._cut.get((id(conditioning), most))
        if known is None or known[0] is not conditioning:
            if len(self._cut) >= KEPT_CUT:
                self._cut.clear()
            parts = [conditioning[start : start + most] for start in range(0, len(conditioning), most)]
            known = self._cut[id(conditioning), most] = conditioning, parts
        return known[1]

    def _timestep(self, call: int, t: Tensor) -> float:
        first, timesteps = self._ahead
        return timesteps[call - first] if call - first < len(timesteps) else float(t)

    def _sigma(self, timestep: float) -> float:
        alphas_cumprod = self._model().alphas_cumprod
        if self._levels is None or self._levels[0] is not alphas_cumprod:
            self._levels = alphas_cumprod, sigmas_from(alphas_cumprod.cpu())
        return t_to_sigma(torch.tensor([timestep]), self._levels[1]).tolist()[0]  # type: ignore[no-any-return]
