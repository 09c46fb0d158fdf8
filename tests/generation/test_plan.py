"""settle() and plan(): what is picked once, and which pictures follow from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.plan import PICKED_SEEDS, plan, settle
from modules.generation.request import SEED_LIMIT, GenerationRequest

sizes = st.tuples(st.integers(1, 8), st.integers(1, 100))


@given(sizes, st.integers(0, 2**40), st.data())
def test_a_resumed_plan_makes_the_missing_pictures_with_the_same_seeds(sizes, seed, data):
    batch_size, batch_count = sizes
    request = GenerationRequest(seed=seed, steps=1, width=64, height=64, batch_size=batch_size, batch_count=batch_count)
    request = settle(request, "x")
    whole = plan(request).images
    done = data.draw(st.sets(st.integers(0, len(whole) - 1)))
    rest = plan(request, done)
    assert rest.images == tuple(image for image in whole if image.index not in done)
    assert [image.seed for image in whole] == [seed + index for index in range(batch_size * batch_count)]
    assert sum(rest.batches, ()) == rest.images
    assert all(len({image.batch for image in batch}) == 1 for batch in rest.batches)
    assert max(len(batch) for batch in plan(request).batches) == batch_size


@given(sizes)
def test_settle_picks_a_seed_once_and_keeps_the_last_one_in_range(sizes):
    request = GenerationRequest(steps=1, width=64, height=64, batch_size=sizes[0], batch_count=sizes[1])
    settled = settle(request, "name", pick=lambda limit: limit - 1)
    assert (settled.seed, settled.checkpoint) == (PICKED_SEEDS - sizes[0] * sizes[1] - 1, "name")
    assert plan(settled).images[-1].seed < PICKED_SEEDS
    assert settle(settled, "name") == settled


def test_a_seed_that_would_run_over_its_limit_is_refused():
    request = GenerationRequest(seed=SEED_LIMIT - 2, batch_count=3)
    with pytest.raises(ValueError, match="seed must be at most"):
        settle(request, "x")


def test_an_open_request_is_not_planned():
    with pytest.raises(ValueError, match="settled"):
        plan(GenerationRequest())
    with pytest.raises(ValueError, match="settled"):
        plan(GenerationRequest(seed=1))
