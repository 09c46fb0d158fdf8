"""settle() and plan(): what is picked once, and which pictures follow from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.plan import PICKED_SEEDS, Texts, plan, settle, split
from modules.generation.request import SEED_LIMIT, GenerationRequest, Hires, Refiner
from modules.prompt.styles import Style


def named(name):
    """Every checkpoint is this one."""
    return lambda wanted: name


sizes = st.tuples(st.integers(1, 8), st.integers(1, 100))


@given(sizes, st.integers(0, 2**40), st.data())
def test_a_resumed_plan_makes_the_missing_pictures_with_the_same_seeds(sizes, seed, data):
    batch_size, batch_count = sizes
    request = GenerationRequest(seed=seed, steps=1, width=64, height=64, batch_size=batch_size, batch_count=batch_count)
    request = settle(request, named("x"))
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
    settled = settle(request, named("name"), pick=lambda limit: limit - 1)
    assert (settled.seed, settled.checkpoint) == (PICKED_SEEDS - sizes[0] * sizes[1] - 1, "name")
    assert plan(settled).images[-1].seed < PICKED_SEEDS
    assert settle(settled, named("name")) == settled


def test_a_seed_that_would_run_over_its_limit_is_refused():
    request = GenerationRequest(seed=SEED_LIMIT - 2, batch_count=3)
    with pytest.raises(ValueError, match="seed must be at most"):
        settle(request, named("x"))


def test_an_open_request_is_not_planned():
    with pytest.raises(ValueError, match="settled"):
        plan(GenerationRequest())
    with pytest.raises(ValueError, match="settled"):
        plan(GenerationRequest(seed=1))


def test_all_checkpoints_are_found_when_the_request_is_accepted():
    request = GenerationRequest(checkpoint="a", hires=Hires(checkpoint="b"), refiner=Refiner(checkpoint="c"))
    settled = settle(request, lambda name: f"{name}.safetensors")
    assert settled.checkpoint == "a.safetensors"
    assert settled.hires and settled.hires.checkpoint == "b.safetensors"
    assert settled.refiner and settled.refiner.checkpoint == "c.safetensors"
    assert settle(GenerationRequest(hires=Hires()), named("x")).hires == Hires()  # "": as in the first pass


def test_pictures_that_vary_one_seed_share_it():
    request = GenerationRequest(seed=7, variation_seed=3, variation_strength=0.2, batch_size=2, checkpoint="x")
    assert [(image.seed, image.variation_seed) for image in plan(request).images] == [(7, 3), (7, 4)]


def test_styles_comments_and_wildcards_are_in_the_planned_prompts():
    texts = Texts(
        styles=[Style("oil", "{prompt}, oil on canvas", "photo"), Style("big", "large", "")],
        wildcards=lambda name: ["red"] if name == "colour" else [],
    )
    request = GenerationRequest(
        prompt="a __colour__ hat # not this",
        negative_prompt="blurry",
        styles=("oil", "unknown", "big"),
        seed=1,
        checkpoint="x",
        hires=Hires(prompt="a hat"),
    )
    image = plan(request, texts=texts).images[0]
    assert image.prompt == "a red hat \n, oil on canvas, large"
    assert image.negative_prompt == "blurry, photo"
    assert image.hires_prompt == "a hat, oil on canvas, large"
    assert image.hires_negative_prompt == image.negative_prompt
    plain = plan(request, texts=Texts(comments=False)).images[0]
    assert plain.prompt == request.prompt


def test_networks_are_told_from_the_text():
    prompt = split("a <lora:x:0.5> cat<hypernet:y:1>")
    assert prompt.text == "a  cat"
    assert [tag.kind for tag in prompt.networks] == ["lora", "hypernet"]
