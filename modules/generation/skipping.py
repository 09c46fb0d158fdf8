"""Which calls of the model go without the negative prompt, to save time: the early ones, or those at low noise."""

from dataclasses import dataclass, field


@dataclass
class Skipping:
    """Counts the calls of one pass."""

    calls: int  # of the pass, as far as one knows before
    early: float = 0.0  # 0–1: the part of them at the beginning (setting skip_early_cond)
    below: float = 0.0  # noise level (s_min_uncond, "negative guidance minimum sigma")
    every: bool = False  # there at every call, not every other (s_min_uncond_all)
    notes: dict[str, object] = field(default_factory=dict)  # for the infotext: what has happened

    @property
    def is_on(self) -> bool:
        """Else nobody needs to ask, and a noise level need not come from the device."""
        return self.early > 0 or self.below > 0

    def skips(self, call: int, sigma: float) -> bool:
        """`call` is 0-based; to be asked once a call."""
        if self.early and call / self.calls <= self.early:
            self.notes["Skip Early CFG"] = self.early
            return True
        if sigma < self.below and (self.every or call % 2):
            self.notes["NGMS"] = self.below
            if self.every:
                self.notes["NGMS all steps"] = True
            return True
        return False
