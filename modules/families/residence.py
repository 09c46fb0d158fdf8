"""Where the parts of the model at work are: all on its device, in turn, or the UNet layer by layer. Moves weights and
knows when; which way is taken is decided in levels.py. For the worker's thread only."""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from modules.families.family import Model
from modules.families.footprint import footprint_of, size_of
from modules.families.latent import LatentModel
from modules.families.levels import Level, MemoryPlan, Work, choose, lower, needed_beside, rungs, spoken
from modules.families.vae import Limits
from modules.runtime.memory import GIB, Memory, host_free

log = logging.getLogger(__name__)

HOST = torch.device("cpu")
ROOM_TO_WORK = GIB  # beside the weights, for a checkpoint to be loaded straight to the device


class NotEnoughMemory(ValueError):
    """Not even the way that takes least fits; the sentence is for the user."""


class Residence:
    """One for a device. A run does `arrange`, changes weights as it likes (LoRAs), then `start`; from then on the parts
    come when they are called. At its end, `settle`: the weights may be changed back."""

    def __init__(
        self,
        memory: Memory | None = None,
        least: Callable[[str], Level] = lambda family: "whole",
        make_room: Callable[[int, Memory], object] = lambda wanted, memory: None,
    ):
        """`memory`: None is that of the model's device. `least`: by a family's name, the level that flags ask for.
        `make_room`: models that are kept for later go, until so many bytes are free, or none is left."""
        self._memory, self._least, self._make_room = memory, least, make_room
        self.plan: MemoryPlan | None = None  # of the last run
        self.current: MemoryPlan | None = None  # of the run that is going on
        self._available = 0  # when it was planned
        self._arranged: weakref.ref[LatentModel] | None = None
        self._parts: list[Part] = []
        self._undo = ExitStack()

    def arrange(
        self, model: Model, work: Work, below: MemoryPlan | None = None, instead: tuple[torch.dtype, ...] = ()
    ) -> MemoryPlan | None:
        """Decides how the work is done, and makes ready for it. `below`: what was tried and did not fit. `instead`:
        what the VAE may compute in after an overflow. None: this kind of model is left where it is. Raises
        NotEnoughMemory."""
        self.settle()
        if not isinstance(model, LatentModel):
            return None
        memory = self._of(model)
        self._send_home(model)
        plan = self.plan = self.current = self._planned(model, work, memory, below)
        parts = [Part(network, memory) for network in model.components.values()]
        model.vae.limits = Limits(plan.tile, instead, model.vae.network.dtype, self._room)
        model.vae.tiles_used = None
        self._parts, self._arranged = parts, weakref.ref(model)
        if plan.level == "whole":
            for part in parts:
                part.bring(for_good=True)
            return plan
        for part in parts:
            part.leave()
        return plan

    def start(self, in_order: bool = True) -> None:
        """What `arrange` has made ready begins. `in_order`: every call of the UNet goes through all of its layers."""
        model, plan = self._arranged() if self._arranged else None, self.current
        if model is None or plan is None or plan.level == "whole":
            return
        unet, vae = model.unet, model.vae.network
        for part in self._parts:
            # The VAE is called by its halves.
            for module in vae.children() if part.module is vae else [part.module]:
                self._undo.callback(
                    module.register_forward_pre_hook(self._turn_to(part, streamed(plan, part, unet))).remove
                )
        if plan.level == "streamed" and self._memory:
            self._undo.enter_context(streaming(unet, self._memory, in_order))

    def settle(self) -> None:
        """The run is over, or has failed: nothing is hooked any more; what was moved in turn is at home."""
        self._undo.close()
        if self.current and self.current.level != "whole":
            for part in self._parts:
                part.leave()
        self._parts, self.current = [], None

    def release(self) -> None:
        """Gives back what nobody uses."""
        if self._memory:
            self._memory.release()

    def said(self) -> tuple[list[str], int | None]:
        """What the VAE has to tell the user since this was asked last, and the pixels of its tiles, if it took any."""
        model = self._arranged() if self._arranged else None
        if model is None:
            return [], None
        sentences, tiles = list(model.vae.said), model.vae.tiles_used
        model.vae.said.clear()
        return sentences, tiles

    def has_room_beside(self, work: Work) -> bool:
        """Whether one batch of the run that is going on can be decoded while the next one is sampled."""
        model, plan = self._arranged() if self._arranged else None, self.current
        if model is None or plan is None or not plan.is_plain:
            return False
        return needed_beside(plan, footprint_of(model), work, model.latent.factor) <= self._available

    def home_for(self, size: int, family: str = "") -> torch.device:
        """Where a model of so many bytes is loaded to: the device, if all of it fits there."""
        memory = self._memory
        if memory is None or not memory.moves:
            return HOST if memory is None else memory.device
        fits = self._least(family) == "whole" and memory.free() >= size + ROOM_TO_WORK
        return memory.device if fits else HOST

    def facts(self) -> dict[str, object]:
        """How the last run was done, for the system info; bytes."""
        if self.plan is None or self._memory is None:
            return {}
        plan, memory = self.plan, self._memory
        return {
            "level": plan.level,
            "plan": str(plan),
            "needed": plan.needed,
            "available": self._available,
            "free": memory.free(),
            "total": memory.total(),
        }

    def _of(self, model: LatentModel) -> Memory:
        if self._memory is None or (self._memory.device != model.device):
            self._memory = Memory(model.device)
        return self._memory

    def _send_home(self, coming: LatentModel) -> None:
        """Another model that was here before makes room."""
        before = self._arranged() if self._arranged else None
        if before is not None and before is not coming and self._memory and self._memory.moves:
            for network in before.components.values():
                Part(network, self._memory).leave()

    def _planned(self, model: LatentModel, work: Work, memory: Memory, below: MemoryPlan | None) -> MemoryPlan:
        plans = rungs(footprint_of(model), work, model.latent.factor, memory.moves, self._least(model.family))
        left = lower(plans, below) if below else plans
        present = sum(size_of(network) for network in model.components.values() if memory.has(network))
        if left:
            self._make_room(left[0].needed - present, memory)
        available = self._available = memory.free() + present
        plan = choose(left, available) if left else None
        what = f"{work.pictures} × {work.width}×{work.height}"
        if plan is None:
            less = "" if left else " (all ways of saving memory were tried)"
            where = "this machine" if memory.device.type == "cpu" else "the graphics card"
            raise NotEnoughMemory(
                f"not enough memory: {what} with {model.family} takes at least {spoken(plans[-1].bare)}, and {where} "
                f"has {spoken(available)} for it, of {spoken(memory.total())} in all{less}; "
                "ask for a smaller size or batch"
            )
        log.info(
            "memory for %s with %s: %s; %s of %s, weights %s",
            what, model.family, plan, spoken(plan.needed), spoken(available), spoken(footprint_of(model).weights),
        )  # fmt: skip
        return plan

    def _room(self) -> int:
        return self._memory.free() if self._memory else 0

    def _turn_to(self, part: "Part", comes_by_layers: bool) -> Callable[..., None]:
        def before(module: nn.Module, given: Any) -> None:
            for other in self._parts:
                if other is not part:
                    other.leave()
            if not comes_by_layers:
                part.bring()

        return before


def streamed(plan: MemoryPlan, part: "Part", unet: nn.Module) -> bool:
    return plan.level == "streamed" and part.module is unet


class Part:
    """One network, which may be on the device or in main memory."""

    def __init__(self, module: nn.Module, memory: Memory):
        self.module, self._memory = module, memory
        self._home: list[tuple[Tensor, Tensor]] = []  # each weight that was brought, and what it was in main memory

    def bring(self, for_good: bool = False) -> None:
        """`for_good`: nothing stays behind in main memory."""
        memory = self._memory
        if memory.has(self.module):
            return
        size = size_of(self.module)
        memory.take(self.module, size)
        if memory.device == HOST:
            return
        # Pages that can't be swapped are copied faster, and beside the device's work; they are taken from everybody.
        pins = not for_good and memory.device.type == "cuda" and host_free() > 3 * size
        try:
            with torch.inference_mode(False):
                for weight in weights_of(self.module):
                    home = weight.data.pin_memory() if pins and not weight.is_pinned() else weight.data
                    weight.data = home.to(memory.device, non_blocking=True)
                    if not for_good:
                        self._home.append((weight, home))
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        with torch.inference_mode(False):
            for weight, home in self._home:
                # The VAE may have changed its format meanwhile.
                weight.data = home if home.dtype is weight.dtype else weight.data.to(HOST)
            self._home.clear()
            if self._memory.device != HOST:
                for weight in weights_of(self.module):
                    weight.data = weight.data.to(HOST)
        self._memory.give_back(self.module)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextmanager
def streaming(unet: nn.Module, memory: Memory, in_order: bool = True) -> Iterator[None]:
    """Within, the UNet's weights are in main memory, and each layer's come to the device for as long as it works; on
    CUDA the next one's are copied meanwhile, where it is known which one that is."""
    overlapped = memory.device.type == "cuda" and in_order
    with torch.inference_mode(False):
        apply_group_offloading(
            unet,
            onload_device=memory.device,
            offload_device=HOST,
            offload_type="leaf_level",
            use_stream=overlapped,
            record_stream=overlapped,
            non_blocking=overlapped,
            low_cpu_mem_usage=overlapped and host_free() < 2 * size_of(unet),
        )
    forward = unet.forward

    def outside_inference_mode(*given: Any, **named: Any) -> Any:
        # What is moved inside of it could not be changed outside of it.
        with torch.inference_mode(False), torch.no_grad():
            return forward(*given, **named)

    unet.forward = outside_inference_mode
    try:
        yield
    finally:
        unet.forward = forward
        unstream(unet)


def unstream(unet: nn.Module) -> None:
    """Every layer is at home again, also when a call of the network has failed half-way. diffusers has no call for
    it."""
    with torch.inference_mode(False):
        for module in unet.modules():
            registry = module.__dict__.get("_diffusers_hook")
            if registry is None:
                continue
            hook = registry.get_hook("group_offloading")
            if hook is not None:
                hook.group.offload_()
            for name in reversed(list(registry.hooks)):
                registry.remove_hook(name, recurse=False)
            if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
                del module.forward
            del module._diffusers_hook
