"""settle() and plan(): what is picked once, and which pictures follow from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.generation.plan import PICKED_SEEDS, Texts, plan, settle, split
from modules.generation.request import SEED_LIMIT, GenerationRequest, Hires, Init, Loopback, Refiner, SdUpscale
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


def scripted(script, **fields):
    return GenerationRequest(seed=5, checkpoint="x", init=Init(images=("a" * 64,), script=script), **fields)


def test_a_round_of_loopback_is_its_loops_and_one_of_sd_upscale_a_picture():
    whole = plan(scripted(Loopback(loops=3), batch_size=4, batch_count=2))
    assert [[image.seed for image in batch] for batch in whole.batches] == [[5, 6, 7], [8, 9, 10]]
    whole = plan(scripted(SdUpscale(), batch_size=4, batch_count=2))
    assert [[image.seed for image in batch] for batch in whole.batches] == [[5], [6]]


def test_a_loop_that_was_begun_knows_what_was_made_of_it():
    rest = plan(scripted(Loopback(loops=3), batch_count=2), {0, 1, 2, 3})
    assert ([image.index for image in rest.images], [image.index for image in rest.before]) == ([4, 5], [3])
    assert plan(scripted(SdUpscale(), batch_count=3), {0}).before == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"script": Loopback(), "images": ("a" * 64, "b" * 64)}, "Loopback starts from one picture, got 2"),
        ({"script": SdUpscale(), "mask": {"image": "b" * 64}}, "leave the mask out"),
        ({"script": {"name": "SD upscale", "scale": 5}}, "less than or equal to 4"),
        ({"script": {"name": "Loopback", "loops": 33}}, "less than or equal to 32"),
        ({"script": {"name": "Loopback", "curve": "Wild"}}, "'Aggressive', 'Linear' or 'Lazy'"),
        ({"script": {"name": "Magic"}}, "'SD upscale', 'Loopback'"),
        ({"script": {"loops": 3}}, "Unable to extract tag using discriminator 'name'"),
    ],
)
def test_scripts_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        Init(**{"images": ("a" * 64,), **fields})


def test_what_a_scripts_request_may_cost():
    with pytest.raises(ValueError, match="must overlap by less than a tile, got 64"):
        scripted(SdUpscale(), width=64, height=64)
    with pytest.raises(ValueError, match="loops × batch_count must be at most 1000, got 3200"):
        scripted(Loopback(loops=32), batch_count=100, steps=1)


def test_a_script_survives_the_queues_database():
    for script in (None, SdUpscale(scale=1.5), Loopback(curve="Lazy")):
        request = scripted(script)
        assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
