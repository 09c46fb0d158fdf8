"""Attention inside of the networks: as diffusers computes it, by whatever backend; keys and values of a prompt are made
once, and anew as soon as anything that they come from is another."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from modules.families.attention import Attending, attending_of, attention
from modules.families.family import Conditioning
from modules.families.networks.applied import applied
from modules.families.networks.token_merging import token_merging
from modules.families.residence import unstream
from modules.generation.engine import generate
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.generation.shelf import Shelf
from modules.library.checkpoints import Checkpoint
from modules.runtime.attention import NONE, SUB_QUADRATIC, Wanted, backend_for, sdp
from modules.settings.schema import Settings
from tests.families.networks.files import network_from, network_of
from tests.families.networks.test_hypernetworks import layers, save
from tests.generation.test_engine import checkpoint as checkpoint
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0, 500.0])
TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def conditioning(seed: int = 0) -> Conditioning:
    return Conditioning(torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(seed)))


def unet_of(model: Any) -> Attending:
    attending = attending_of(model.components["unet"])
    assert attending
    return attending


@contextmanager
def products(model: Any) -> Iterator[list[str]]:
    """The names of the layers that make keys of prompts, as often as they do."""
    made: list[str] = []

    def note(name: str) -> Any:
        return lambda layer, given, output: made.append(name)

    found = [(name, layer) for name, layer in model.components["unet"].named_modules() if name.endswith("attn2.to_k")]
    # By forward itself: a hook would be a reason to make them anew.
    for name, layer in found:
        layer.forward = lambda x, layer=layer, name=name: (made.append(name), type(layer).forward(layer, x))[1]
    try:
        yield made
    finally:
        for _, layer in found:
            del layer.forward


@torch.inference_mode()
def test_both_networks_attend_as_diffusers_does(tiny_model: Any):
    c = conditioning()
    latents = torch.randn(1, 4, 8, 8)
    ours = tiny_model.predict(X, T, c), tiny_model.decode(latents)
    own = {}
    for name in ("unet", "vae"):
        for layer in tiny_model.components[name].modules():
            if hasattr(layer, "set_processor"):
                own[layer] = layer.processor
                layer.set_processor(AttnProcessor2_0())
    try:
        theirs = tiny_model.predict(X, T, c), tiny_model.decode(latents)
    finally:
        for layer, processor in own.items():
            layer.set_processor(processor)
    assert len(own) > 4
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_backends_change_nothing_but_the_way_and_are_undone(tiny_model: Any):
    c = conditioning()
    before = tiny_model.predict(X, T, c)
    calls = []

    def counted(*qkvm: Any) -> Any:
        calls.append(qkvm[0].shape)
        return sdp(*qkvm)

    for name in (SUB_QUADRATIC, NONE):
        backend = backend_for(name, Wanted(queries=5), torch.device("cpu"))
        with attention(tiny_model, backend):
            assert unet_of(tiny_model).backend is backend
            torch.testing.assert_close(tiny_model.predict(X, T, c), before, rtol=1e-4, atol=1e-5)
    with attention(tiny_model, replace(backend_for(NONE, Wanted(), X.device), attend=counted), upcast=True):
        tiny_model.predict(X, T, c)
        tiny_model.decode(X)
    assert len(calls) > 4
    with pytest.raises(RuntimeError), attention(tiny_model, backend_for(NONE, Wanted(), X.device)):
        raise RuntimeError
    assert unet_of(tiny_model).backend.name == "sdp" and not unet_of(tiny_model).upcast


@torch.inference_mode()
def test_made_once_as_long_as_the_prompt_is_the_same(tiny_model: Any):
    with products(tiny_model) as made:
        first, other = conditioning(1), conditioning(2)
        results = [tiny_model.predict(X, T, c) for c in (first, first, other, first, other)]
    layers = len(set(made))
    assert len(made) == 2 * layers > 0
    assert results[0].equal(results[1]) and results[0].equal(results[3]) and results[2].equal(results[4])
    assert not results[0].equal(results[2])


@torch.inference_mode()
def test_given_back_with_the_prompt(tiny_model: Any):
    c = conditioning()
    tiny_model.predict(X, T, c)
    assert unet_of(tiny_model).kept > 0
    del c
    gc.collect()
    assert unet_of(tiny_model).kept == 0


@torch.inference_mode()
@pytest.mark.parametrize("functional", [False, True])
def test_a_lora_makes_them_anew_and_so_does_its_end(tiny_model: Any, tmp_path: Path, functional: bool):
    network = network_from(tmp_path, {f"{TO_K}.diff": torch.randn(64, 32)})
    c = conditioning()
    before = tiny_model.predict(X, T, c)
    with applied(tiny_model, [network], functional=functional):
        within = tiny_model.predict(X, T, c)
        fresh = tiny_model.predict(X, T, conditioning())  # the same numbers that were never seen
        assert within.equal(fresh) and not within.equal(before)
    assert tiny_model.predict(X, T, c).equal(before)


@torch.inference_mode()
def test_a_hypernetwork_makes_them_anew_and_so_does_its_end(tiny_model: Any, tmp_path: Path):
    entries = [layers(32, nn.Linear(32, 64), nn.Linear(64, 32)) for _ in range(2)]
    network = network_of(save(tmp_path / "h.pt", {32: entries, "activation_func": "relu"}), "hypernetwork")
    c = conditioning()
    before = tiny_model.predict(X, T, c)
    with applied(tiny_model, [network]):
        within = tiny_model.predict(X, T, c)
        assert within.equal(tiny_model.predict(X, T, conditioning())) and not within.equal(before)
    assert tiny_model.predict(X, T, c).equal(before)


@torch.inference_mode()
def test_token_merging_does_not_touch_them(tiny_model: Any):
    c = conditioning()
    with token_merging(tiny_model, 0.5), products(tiny_model) as made:
        first = tiny_model.predict(X, T, c)
        assert first.equal(tiny_model.predict(X, T, c))
        assert len(made) == len(set(made)) > 0
    assert not first.equal(tiny_model.predict(X, T, c))


@torch.inference_mode()
def test_streamed_layers_are_all_called(tiny_model: Any):
    """Each brings the next one to the device, in the order of the first call."""
    unet, c = tiny_model.components["unet"], conditioning()
    before = tiny_model.predict(X, T, c)
    apply_group_offloading(unet, X.device, X.device, offload_type="leaf_level")
    try:
        with products(tiny_model) as made:
            assert tiny_model.predict(X, T, c).equal(before) and tiny_model.predict(X, T, c).equal(before)
        assert len(made) == 2 * len(set(made)) > 0
    finally:
        unstream(unet)


def test_training_makes_them_every_time(tiny_model: Any):
    c = Conditioning(torch.randn(2, 77, 32, requires_grad=True))
    for _ in range(2):
        tiny_model.predict(X, T, c).sum().backward()
    assert c.cross.grad is not None and c.cross.grad.abs().sum() > 0
    assert unet_of(tiny_model).kept == 0


def test_a_run_keeps_nothing_and_edited_prompts_get_their_own(tiny_model: Any, checkpoint: Checkpoint):
    """Eight steps of an alternation: each step as if there were no memory of the ones before."""

    def run(**changes: Any) -> Any:
        asked = {"prompt": "[cat|dog] on [a:the:0.5] mat", "negative_prompt": "x", "checkpoint": "tiny", "seed": 7}
        wanted = GenerationRequest(**{**asked, "width": 64, "height": 64, "steps": 6, **changes})
        (image,) = generate(plan(wanted), Shelf.of(tiny_model, checkpoint), Settings(), lambda progress: None)
        return image.image.tobytes()

    with products(tiny_model) as made:
        with_memory = run()
        calls = len(made)
    assert unet_of(tiny_model).kept == 0
    attending = unet_of(tiny_model)
    attending._keys_and_values = lambda layer, context: (layer.to_k(context), layer.to_v(context))  # type: ignore[method-assign]
    try:
        assert run() == with_memory
    finally:
        del attending._keys_and_values  # type: ignore[method-assign]
    with products(tiny_model) as made:
        run(prompt="a cat")
    assert len(made) == len(set(made)) < calls  # of a prompt that stays: once
