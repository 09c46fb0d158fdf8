"""Which ways there are to fit a run into memory, fastest first, and which of them fits. Pure numbers, in bytes, pixels
and rows: nothing here touches a device."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from modules.families.footprint import Footprint
from modules.families.vae import TILES, WORKSPACE
from modules.runtime.memory import GIB, MIB

# Where the weights are: all on the device; only those of the part that works; of the UNet only the layer that works.
Level = Literal["whole", "in turn", "streamed"]
LEVELS: tuple[Level, ...] = get_args(Level)
TITLES: dict[Level, str] = {
    "whole": "all parts on the device",
    "in turn": "parts moved in turn",
    "streamed": "UNet streamed, parts moved in turn",
}

RESERVE = 200 * MIB
MOST = 1_000_000
KEPT = 3 * 3 * 4  # bytes a pixel of the finished pictures: RGB in float32, three times while they are joined


@dataclass(frozen=True)
class Work:
    """What a run asks of the networks at most."""

    pictures: int  # at once
    rows: int  # that its UNet gets at once: pictures, times two for the negative prompt
    width: int  # pixels, of its largest pass
    height: int
    encodes: bool = False  # its VAE also encodes


@dataclass(frozen=True)
class MemoryPlan:
    """One way to do the work."""

    level: Level
    rows: int | None  # that the UNet gets at once; None: all
    tile: int | None  # cells of a latent in each direction that the VAE gets at once; None: all
    needed: int = 0  # the most that is on the device at once, with what is borrowed and lost
    bare: int = 0  # the same without: less cannot do

    @property
    def is_plain(self) -> bool:
        """Nothing is moved and nothing divided."""
        return self.level == "whole" and self.rows is None and self.tile is None

    def __str__(self) -> str:
        said = [TITLES[self.level]] if self.level != "whole" or not (self.rows or self.tile) else []
        said += [f"UNet {self.rows} at once"] if self.rows else []
        said += [f"VAE in tiles of {self.tile * 8} pixels"] if self.tile else []
        return ", ".join(said)


def least_level(flags: Namespace, family: str) -> Level:
    """What --lowvram, --medvram and --medvram-sdxl ask for; without them, whatever fits."""
    if flags.lowvram:
        return "streamed"
    return "in turn" if flags.medvram or (flags.medvram_sdxl and family.startswith("SDXL")) else "whole"


def rungs(footprint: Footprint, work: Work, factor: int, moves: bool, least: Level = "whole") -> list[MemoryPlan]:
    """All ways, fastest first. `factor`: pixels a latent cell. `moves`: whether weights can be elsewhere than on the
    device; `least`: the level to begin with, at most."""
    side = max(work.width, work.height) // factor
    tiles = [tile for tile in TILES if tile < side]
    rows, fewer = work.rows, list[int]()
    while rows > 1:
        rows = -(-rows // 2)
        fewer.append(rows)
    levels = LEVELS[LEVELS.index(least) :] if moves else LEVELS[:1]
    found: list[MemoryPlan] = []
    for level in levels:
        # What changes nothing in the picture comes first; moving parts costs less than smaller tiles and batches do.
        found.append(MemoryPlan(level, None, None))
        if level == "whole" and moves:
            continue
        found += [MemoryPlan(level, None, tile) for tile in tiles[:2]]
        found += [MemoryPlan(level, count, tiles[:2][-1] if tiles else None) for count in fewer]
        found += [MemoryPlan(level, 1, tile) for tile in tiles[2:]]
    return [with_needs(plan, footprint, work, factor) for plan in dict.fromkeys(found)]


def with_needs(plan: MemoryPlan, footprint: Footprint, work: Work, factor: int) -> MemoryPlan:
    def peak(margin: float) -> int:
        cells = (work.width // factor) * (work.height // factor)
        unet = footprint.unet_row_cell * min(plan.rows or work.rows, work.rows) * cells * margin
        vae = vae_peak(footprint, work.width, work.height, plan.tile, factor, work.encodes) * margin
        vae += KEPT * work.pictures * work.width * work.height
        match plan.level:
            case "whole":
                return int(footprint.weights + max(unet, vae))
            case "in turn":
                return int(max(footprint.largest_text, footprint.unet + unet, footprint.vae + vae))
            case "streamed":
                return int(max(footprint.largest_text, footprint.unet_at_once + unet, footprint.vae + vae))

    return MemoryPlan(plan.level, plan.rows, plan.tile, peak(WORKSPACE) + RESERVE, peak(1))


def vae_peak(footprint: Footprint, width: int, height: int, tile: int | None, factor: int, encodes: bool) -> float:
    """What the VAE computes with, for one picture or one tile; and the picture itself, which is joined from tiles."""
    pixels = width * height
    at_once = pixels if tile is None else min(width, tile * factor) * min(height, tile * factor)
    joined = 0 if tile is None else KEPT * pixels
    return max(footprint.decode_pixel, footprint.encode_pixel if encodes else 0) * at_once + joined


def needed_beside(plan: MemoryPlan, footprint: Footprint, work: Work, factor: int) -> int:
    """The most that is on the device when one batch is decoded while the next one is at its peak."""
    vae = vae_peak(footprint, work.width, work.height, plan.tile, factor, encodes=False) * WORKSPACE
    return int(plan.needed + vae + KEPT * work.pictures * work.width * work.height)


def lower(plans: Sequence[MemoryPlan], below: MemoryPlan) -> list[MemoryPlan]:
    """What is left to try after `below` has failed: nothing of it grows again. `below` may be of another model."""

    def place(plan: MemoryPlan) -> tuple[int, int, int]:
        return LEVELS.index(plan.level), -(plan.tile or MOST), -(plan.rows or MOST)

    def grows(plan: MemoryPlan) -> bool:
        return (plan.tile or MOST) > (below.tile or MOST) or (plan.rows or MOST) > (below.rows or MOST)

    return [plan for plan in plans if place(plan) > place(below) and not grows(plan)]


def choose(plans: Sequence[MemoryPlan], available: int) -> MemoryPlan | None:
    """The fastest that fits; else the last, if it may yet do; None: it takes more than there is."""
    fits = next((plan for plan in plans if plan.needed <= available), None)
    if fits is None and plans[-1].bare <= available:
        return plans[-1]
    return fits


def spoken(size: int) -> str:
    """Bytes, for people."""
    return f"{size / GIB:.1f} GB" if size >= GIB / 10 else f"{size / MIB:.0f} MB"
