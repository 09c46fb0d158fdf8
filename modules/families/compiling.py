"""torch.compile for the UNet, where the user asks for it: by inductor, which writes kernels for this machine (minutes
for the first picture of each size), or as CUDA graphs, which are recorded and played again and need no Triton."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch

from modules.families.family import Model

Way = Literal["Off", "inductor", "cudagraphs"]
TRITON = (8, 0)  # the oldest cards that Triton still writes kernels for


def why_not(way: Way, device: torch.device) -> str:
    """What this machine lacks for it; "": nothing."""
    if device.type != "cuda":  # on processors inductor took minutes and gained nothing (docs/benchmarks.md)
        return f"that is for NVIDIA cards, and the device is {device.type}"
    if way == "cudagraphs":
        return ""
    if find_spec("triton") is None:
        return "inductor needs triton, which is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < TRITON:
        return f"Triton no longer supports this card (compute capability {capability[0]}.{capability[1]})"
    return ""


@contextmanager
def compiled(model: Model, way: Way, backend: str | Callable[..., Any] | None = None) -> Iterator[None]:
    """Within, the UNet's calls go through what torch.compile made of it; what it cannot compile runs as it is. The
    compiled call is kept with the UNet for the next time. `backend`: another than the way's own."""
    if way == "Off":
        yield
        return
    import torch._dynamo.config

    unet = model.components["unet"]
    known: dict[Way, Any] = vars(unet).setdefault("compiled_calls", {})
    if way not in known:
        unet.compile(backend=backend or way)
        known[way] = unet._compiled_call_impl
    unet._compiled_call_impl = known[way]
    try:
        with torch._dynamo.config.patch(suppress_errors=True):
            yield
    finally:
        unet._compiled_call_impl = None
