"""The model at work: loaded, and changed as the request wants it, with everything undone at the end. Where memory does
not suffice, in a way that takes less."""

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TypeVar

import torch

from modules.families.attention import attention
from modules.families.compiling import Way, compiled, why_not
from modules.families.family import Model, TextOptions
from modules.families.latent import noise_levels
from modules.families.levels import MemoryPlan, Work
from modules.families.networks.applied import applied
from modules.families.networks.embeddings import FittedEmbeddings
from modules.families.networks.step_caching import step_caching
from modules.families.networks.tiling import tiling
from modules.families.networks.token_merging import token_merging
from modules.generation.developing import Darkroom
from modules.generation.prompts import Encoder
from modules.generation.shelf import Loaded, Shelf
from modules.library.checkpoints import Checkpoint
from modules.library.network_tags import Network, hashes_of, networks_from
from modules.library.vaes import VaeFile
from modules.prompt.networks import NetworkTag
from modules.runtime.attention import Backend, backend_for
from modules.runtime.memory import is_out_of_memory
from modules.settings.schema import Settings

log = logging.getLogger(__name__)

Given = TypeVar("Given")


@dataclass
class AtWork:
    """One checkpoint with its networks."""

    loaded: Loaded
    backend: Backend
    vae: VaeFile | None = None  # None: the checkpoint's own
    networks: Sequence[Network] = ()
    warnings: list[str] = field(default_factory=list)  # sentences for the user
    embeddings: FittedEmbeddings | None = None
    text_changes: Sequence[Hashable] = ()  # by networks, at the text encoder
    plan: MemoryPlan | None = None  # how it fits into memory; None: it was left where it is


class Rig:
    """Use it with `with`. One checkpoint at a time: `use` undoes what it did before, where that differs."""

    def __init__(self, shelf: Shelf, settings: Settings, work: Work):
        self._shelf, self._settings, self._work = shelf, settings, work
        self._below: MemoryPlan | None = None  # did not fit
        self.fallback: MemoryPlan | None = None  # what was done instead
        self._at_work: AtWork | None = None
        self._encoder: Encoder | None = None
        self._keys: tuple[object, object, object] = (None, None, None)
        self._first: str | None = None  # the checkpoint that the request is for
        self._last: tuple[str, Sequence[NetworkTag], TextOptions, float] | None = None  # what was last at work
        self._networks, self._manner = ExitStack(), ExitStack()  # what undoes them
        self.darkroom = Darkroom()  # nothing changes at the model before it is empty

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.darkroom.settle()
        self._shelf.residence.settle()  # the networks of a prompt are taken out of weights that are at home
        self._manner.close()
        self._networks.close()
        self._at_work = self._encoder = None
        self._keys = (None, None, None)

    def use(self, checkpoint: str, tags: Sequence[NetworkTag], options: TextOptions, merging: float) -> Model:
        """The model of this checkpoint with these networks. `merging` (0–1): the share of tokens to merge."""
        settings = self._settings
        keys = ((checkpoint, tuple(tags)), merging, options)
        if keys[:2] != self._keys[:2]:
            self.darkroom.settle()
        if keys[0] != self._keys[0]:
            self.__exit__()
            self._at_work = self._changed(checkpoint, tags)
            self._first = self._first or checkpoint
        if keys[:2] != self._keys[:2]:
            self._manner.close()
            self._manner.enter_context(attention(self.model, self.at_work.backend, settings.upcast_attn))
            self._manner.enter_context(tiling(self.model, settings.tiling))
            self._manner.enter_context(token_merging(self.model, merging))
            self._manner.enter_context(step_caching(self.model, settings.step_caching))
            self._manner.enter_context(compiled(self.model, self._way_to_compile(merging)))
        if keys != self._keys:
            kept = self._shelf.conditionings if settings.persistent_cond_cache else None
            options = replace(options, embeddings=self.at_work.embeddings)
            self._encoder = Encoder(self.model, options, kept, tuple(self.at_work.text_changes))
        self._keys = keys
        self._last = (checkpoint, tags, options, merging)
        return self.model

    def _way_to_compile(self, merging: float) -> Way:
        """As the user wants it, where this run and this machine can."""
        settings, plan = self._settings, self.at_work.plan
        way: Way = settings.torch_compile
        if way == "Off":
            return way
        why = why_not(way, self.model.device)
        if settings.step_caching > 1 or merging > 0:
            why = why or "it does not go together with step caching and token merging"
        if plan is not None and plan.level != "whole":
            why = why or "the weights do not stay on the device in this run"
        if not why:
            return way
        self.at_work.warnings.append(f"The UNet is not compiled ({way}): {why}")
        return "Off"

    def is_ready(self) -> bool:
        """Whether there is a model at work. Where the load of another one was interrupted, the one before comes back,
        if it has stayed in memory."""
        if self._at_work is None and self._last and self._shelf.at_hand(self._last[0]):
            self.use(*self._last)
        return self._at_work is not None

    def resume(self) -> None:
        """What was last at work is so again, if `attempt` has taken it away."""
        if self._at_work is None and self._last:
            self.use(*self._last)

    def attempt(self, part: Callable[[], Given]) -> Given:
        """What `part` gives, which finds the rig empty when it is done again: where memory does not suffice, everything
        is let go, and it is tried in the next way that takes less. Raises NotEnoughMemory when there is none left."""
        while True:
            try:
                return part()
            except Exception as error:
                plan = self._shelf.residence.current
                if plan is None or not is_out_of_memory(error):
                    raise
                log.warning("out of memory (%s) with: %s", (str(error).splitlines() or [""])[0][:300], plan)
            # Only here, outside of `except`, are the tensors gone that the failed call has left.
            if self.darkroom.settle():  # it was not alone
                self.darkroom.shut = True
                self._shelf.residence.release()
                continue
            self._below = plan
            self.__exit__()
            self._shelf.vaes.clear()
            self._shelf.conditionings.clear()
            self._shelf.residence.release()

    def has_room_beside(self, anyway: bool) -> bool:
        """Whether one batch can be decoded while the next is sampled; `anyway`: also where it is no use."""
        at_work = self.at_work
        if self.darkroom.shut or at_work.plan is None:
            return False
        # On a processor all cores are busy already; other devices than CUDA have one queue for all threads.
        useful = self.model.device.type == "cuda" and self._shelf.residence.has_room_beside(self._work)
        return at_work.plan.is_plain and (useful or anyway)

    def rows_at_once(self) -> int | None:
        """That the UNet may get; None: all."""
        return self.at_work.plan.rows if self.at_work.plan else None

    def _changed(self, checkpoint: str, tags: Sequence[NetworkTag]) -> AtWork:
        shelf, settings = self._shelf, self._settings
        loaded = shelf.load(checkpoint)
        backend = backend_for(
            settings.cross_attention_optimization, loaded.model.placement.attention, loaded.model.device
        )
        at_work = AtWork(loaded, backend, shelf.vae_for(loaded.checkpoint, settings))
        at_work.warnings += [backend.missing] if backend.missing else []
        taken = [f"{part.lower()} {names}" for part, names in taken_notes(at_work).items()]
        if taken:
            at_work.warnings.append(f"{loaded.checkpoint.model_name} is only a UNet: {', '.join(taken)}")
        zero_snr = settings.sd_noise_schedule == "Zero Terminal SNR"
        self._networks.enter_context(noise_levels(loaded.model, zero_snr, settings.use_downcasted_alpha_bar))
        self._networks.enter_context(shelf.vaes.using(loaded.model, at_work.vae))
        at_work.plan = shelf.residence.arrange(loaded.model, self._work, self._below, vae_dtypes(settings))
        if self._below is not None:
            self.fallback = at_work.plan
        if shelf.networks is not None:
            at_work.networks, unknown = networks_from(tags, shelf.networks)
            at_work.warnings += unknown
            # A refiner and another checkpoint of the hires pass get the networks of the prompt too, as far as they fit.
            lenient = self._first not in (None, checkpoint)
            shelf.network_files.room = settings.lora_in_memory_limit
            changes = applied(loaded.model, at_work.networks, settings.lora_functional, lenient, shelf.network_files)
            report = self._networks.enter_context(changes)
            at_work.warnings += report.warnings
            at_work.text_changes = report.text
            if shelf.embeddings is not None:
                at_work.embeddings = shelf.embeddings.fitted(loaded.model, report.embeddings)
        shelf.residence.start(in_order=settings.step_caching == 1)  # which passes over layers
        return at_work

    def notes(self, said: Sequence[Sequence[str]]) -> dict[str, object]:
        """The infotext's fields about networks and noise levels. `said`: what was encoded, negative prompts first; of
        each prompt all texts of its schedule."""
        at_work, settings, networks = self.at_work, self._settings, self._shelf.networks
        notes: dict[str, object] = {"Downcast alphas_cumprod": settings.use_downcasted_alpha_bar}
        notes |= fp8_notes(at_work.loaded.model, settings) | taken_notes(at_work)
        if settings.add_attention_to_infotext:
            notes["Attention"] = at_work.backend.name
        if settings.sd_noise_schedule != "Default":
            notes["Noise Schedule"] = settings.sd_noise_schedule
        if networks is None:
            return {name: value for name, value in notes.items() if value}
        notes |= {"Hypernet hashes": hashes_of(at_work.networks, "hypernetwork", networks)}
        if settings.lora_add_hashes_to_infotext:
            notes["Lora hashes"] = hashes_of(at_work.networks, "lora", networks)
        if at_work.embeddings is not None and settings.textual_inversion_add_hashes_to_infotext:
            notes["TI hashes"] = at_work.embeddings.hashes(said, settings.lora_bundled_ti_to_infotext)
        return {name: value for name, value in notes.items() if value}

    def warnings(self) -> list[str]:
        """What the user should know of the networks and the memory, by now."""
        embeddings = self.at_work.embeddings
        told = [f"there was not enough memory, so it was done with less: {self.fallback}"] if self.fallback else []
        told += self.at_work.warnings
        if embeddings is None:
            return told
        skipped = (f"embedding {name}: {reason}" for name, reason in embeddings.skipped.items())
        return [*told, *skipped, *embeddings.warnings.values()]

    @property
    def at_work(self) -> AtWork:
        assert self._at_work is not None, "the rig is empty; use() comes first"
        return self._at_work

    @property
    def model(self) -> Model:
        return self.at_work.loaded.model

    @property
    def checkpoint(self) -> Checkpoint:
        return self.at_work.loaded.checkpoint

    @property
    def encoder(self) -> Encoder:
        assert self._encoder is not None, "the rig is empty; use() comes first"
        return self._encoder


def vae_dtypes(settings: Settings) -> tuple[torch.dtype, ...]:
    """What a VAE that overflows may compute in instead, one after the other."""
    wanted = {torch.bfloat16: settings.auto_vae_precision_bfloat16, torch.float32: settings.auto_vae_precision}
    return tuple(dtype for dtype, on in wanted.items() if on)


def fp8_notes(model: Model, settings: Settings) -> dict[str, object]:
    """Where the UNet's weights are kept in 8 bits, in A1111's words."""
    if not model.placement.fp8:
        return {}
    return {"FP8 weight": settings.fp8_storage, "Cache FP16 weight for LoRA": str(settings.cache_fp16_weight)}


def taken_notes(at_work: AtWork) -> dict[str, str]:
    """What a UNet-only file got from other files. Another VAE in the place of that one is told as it always is."""
    taken = at_work.loaded.model.taken
    return {part: names for part, names in taken.items() if at_work.vae is None or not part.startswith("VAE")}
