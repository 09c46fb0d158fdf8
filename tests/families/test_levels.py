"""Which level the planner takes."""

import itertools

import pytest

from modules.families.footprint import UNET_WITH_ATTENTION, UNET_WITHOUT, Footprint
from modules.families.levels import LEVELS, MemoryPlan, Work, choose, least_level, lower, rungs
from modules.families.vae import DECODER, ENCODER
from modules.runtime.flags import notes, parse
from modules.runtime.memory import GIB

# In fp16; the sizes are those of the published checkpoints (tests/families/test_footprint.py counts them).
HALF = 2
SD1 = Footprint(
    1_719_041_928, 143_000_000, 246_000_000, 246_000_000, 167_307_726,
    UNET_WITH_ATTENTION * 320 * HALF, DECODER * 128 * HALF, ENCODER * 128 * HALF,
)  # fmt: skip
SDXL = Footprint(
    5_134_927_368, 510_000_000, 1_636_000_000, 1_390_000_000, 167_307_726,
    UNET_WITHOUT * 320 * HALF, DECODER * 128 * HALF, ENCODER * 128 * HALF,
)  # fmt: skip


def planned(footprint: Footprint, gigabytes: float, side: int, pictures: int = 1, **more: object) -> MemoryPlan | None:
    work = Work(pictures, 2 * pictures, side, side)
    return choose(rungs(footprint, work, 8, **{"moves": True, **more}), int(gigabytes * GIB))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "footprint, gigabytes, side, pictures, level",
    [
        (SDXL, 8.5, 1024, 1, ("whole", "in turn")),
        (SDXL, 4.0, 1024, 1, ("streamed",)),
        (SD1, 3.0, 512, 1, ("whole",)),
        (SD1, 1.5, 512, 1, ("streamed",)),
        (SDXL, 10.4, 1024, 1, ("whole",)),  # a 2080 Ti
        (SDXL, 14.4, 1024, 4, ("whole",)),  # a T4
        (SDXL, 5.8, 1024, 1, ("in turn",)),  # a card of 6 GB
        (SD1, 3.7, 512, 1, ("whole",)),  # one of 4 GB
    ],
)
def test_usual_cards(footprint: Footprint, gigabytes: float, side: int, pictures: int, level: tuple[str, ...]) -> None:
    plan = planned(footprint, gigabytes, side, pictures)
    assert plan is not None and plan.level in level
    assert plan.needed <= gigabytes * GIB
    assert plan.rows is None and plan.tile is None  # none of them has to change anything in the picture


def test_what_is_too_much_is_refused() -> None:
    assert planned(SDXL, 0.5, 1024) is None
    assert planned(SD1, 1.0, 4096) is None
    assert planned(SD1, 4.0, 4096, moves=False) is None


def test_more_memory_is_never_slower() -> None:
    for footprint, side, pictures, moves in itertools.product((SD1, SDXL), (512, 1024, 2048), (1, 3, 8), (True, False)):
        plans = rungs(footprint, Work(pictures, 2 * pictures, side, side), 8, moves)
        last = len(plans)
        for tenth in range(1, 400):
            plan = choose(plans, tenth * GIB // 10)
            rung = len(plans) if plan is None else plans.index(plan)
            assert rung <= last
            last = rung
        assert last == 0  # 40 GB are enough for all of it


def test_a_plan_keeps_to_its_budget_or_is_the_last_there_is() -> None:
    for footprint, side, tenth in itertools.product((SD1, SDXL), (512, 768, 1024, 2048), range(1, 200, 3)):
        plans = rungs(footprint, Work(1, 2, side, side), 8, moves=True)
        plan = choose(plans, tenth * GIB // 10)
        if plan is not None and plan is not plans[-1]:
            assert plan.needed <= tenth * GIB // 10
        if plan is not None:
            assert plan.bare <= tenth * GIB // 10


def test_each_rung_needs_less_or_holds_fewer_weights() -> None:
    plans = rungs(SDXL, Work(4, 8, 1536, 1024), 8, moves=True)
    for before, after in itertools.pairwise(plans):
        assert after.bare <= before.bare or LEVELS.index(after.level) > LEVELS.index(before.level)
    assert plans[-1].level == "streamed" and plans[-1].rows == 1 and plans[-1].tile == 32
    assert len(set(plans)) == len(plans)


def test_after_a_failure_nothing_grows_and_every_way_is_tried_once() -> None:
    plans = rungs(SDXL, Work(4, 8, 1536, 1536), 8, moves=True)
    below, tried = plans[0], [plans[0]]
    while left := lower(plans, below):
        below = left[0]
        tried.append(below)
    assert len(set(tried)) == len(tried) and tried[-1] == plans[-1]
    assert lower(plans, MemoryPlan("in turn", 1, 32))[0] == plans[-1]
    assert [plan.level for plan in lower(plans, plans[0])][0] == "in turn"


def test_flags_set_the_least_level() -> None:
    for argv, expected in (
        ([], ("whole", "whole")),
        (["--medvram"], ("in turn", "in turn")),
        (["--medvram-sdxl"], ("whole", "in turn")),
        (["--lowvram", "--medvram"], ("streamed", "streamed")),
    ):
        flags = parse(argv)
        assert not notes(argv)
        assert (least_level(flags, "SD 1.x"), least_level(flags, "SDXL refiner")) == expected
    in_turn = planned(SD1, 40, 512, least="in turn")
    streamed = planned(SD1, 40, 512, least="streamed")
    assert in_turn and in_turn.level == "in turn" and streamed and streamed.level == "streamed"


def test_where_nothing_can_be_moved_tiles_and_rows_help() -> None:
    roomy = planned(SD1, 16, 1024, moves=False)
    assert roomy and (roomy.level, roomy.rows, roomy.tile) == ("whole", None, None)
    tight = planned(SD1, 3.5, 1024, moves=False)
    assert tight and tight.level == "whole" and tight.tile
    assert all(plan.level == "whole" for plan in rungs(SD1, Work(2, 4, 1024, 1024), 8, moves=False, least="streamed"))


def test_small_pictures_have_no_tiles() -> None:
    assert all(plan.tile is None for plan in rungs(SD1, Work(1, 2, 256, 256), 8, moves=True))


def test_a_plan_says_what_it_is() -> None:
    assert str(MemoryPlan("in turn", 2, 64)) == "parts moved in turn, UNet 2 at once, VAE in tiles of 512 pixels"
    assert str(MemoryPlan("whole", None, 32)) == "VAE in tiles of 256 pixels"
    assert str(MemoryPlan("whole", None, None)) == "all parts on the device"
