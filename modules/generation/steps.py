"""How many steps each pass of a request takes: where on its schedule img2img begins. Knows no torch."""

from dataclasses import dataclass
from math import cos, pi, sin

from modules.generation.request import GenerationRequest, Loopback

MOST_STRENGTH = 0.999  # more counts as this
MOST_STEPS = 10_000  # of a schedule, however little of it is walked


@dataclass(frozen=True)
class Span:
    """The part of a schedule that a pass walks: from `first` to its end."""

    steps: int  # of the whole schedule
    first: int  # 0-based

    @property
    def walked(self) -> int:
        return self.steps - self.first


def span(steps: int, strength: float | None, exact: bool) -> Span:
    """`strength` (0–1) is the part of the schedule that is walked: the schedule has `steps` steps, of which the last
    few are walked, or, if `exact`, it is long enough that just `steps` are. None: all of it, from noise alone."""
    if strength is None:
        return Span(steps, 0)
    strength = min(strength, MOST_STRENGTH)
    if not exact:
        return Span(steps, steps - int(strength * steps) - 1)
    if strength == 0:
        return Span(0, 0)
    whole = int(min(steps / strength, MOST_STEPS))
    return Span(whole, whole - steps)


def spans(request: GenerationRequest, fix_steps: bool) -> tuple[Span, ...]:
    """Of all passes. `fix_steps`: img2img does exactly the steps that were asked for (setting img2img_fix_steps)."""
    strength = request.init.denoising_strength if request.init else None
    first = span(request.steps, strength, fix_steps)
    if request.hires is None:
        return (first,)
    return (first, span(request.hires.steps or request.steps, request.hires.denoising_strength, exact=True))


def round_steps(request: GenerationRequest, fix_steps: bool) -> int:
    """What all passes of a round walk together. SD upscale's tiles are counted when its picture is there: this is one
    of them."""
    script = request.init and request.init.script
    if not isinstance(script, Loopback):
        return sum(span.walked for span in spans(request, fix_steps))
    return sum(span(request.steps, strength, fix_steps).walked for strength in strengths(request))


def strengths(request: GenerationRequest) -> tuple[float, ...]:
    """The denoising strength of every loop of Loopback: from the request's to the final one. Aggressive changes most in
    the first loops, Lazy in the last. Measured: where Linear begins and ends; the curves of the others are not."""
    assert request.init and isinstance(request.init.script, Loopback)
    loops, curve = request.init.script.loops, request.init.script.curve
    first, last = request.init.denoising_strength, request.init.script.final_denoising_strength
    if loops == 1:
        return (first,)
    along = [number / (loops - 1) for number in range(loops)]
    if curve == "Aggressive":
        along = [sin(t * pi / 2) for t in along]
    elif curve == "Lazy":
        along = [1 - cos(t * pi / 2) for t in along]
    return tuple(min(max(first + (last - first) * t, 0.0), 1.0) for t in along)
