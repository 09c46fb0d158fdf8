"""The formula of the activations against what is counted, on tiny networks that run and on true sizes that don't."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory import networks, peak_of_decoder, peak_of_encoder, peak_of_unet
from modules.families.footprint import Footprint, footprint_of, size_of
from modules.runtime.memory import Counting
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

MODE = FakeTensorMode()


@contextmanager
def fake() -> Iterator[None]:
    torch.set_default_dtype(torch.float16)
    try:
        with MODE, torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def true_size(request):  # type: ignore[no-untyped-def]
    with fake():
        model = networks(request.param)
    return model


def test_weights_of_true_size(true_size) -> None:  # type: ignore[no-untyped-def]
    footprint = footprint_of(true_size)
    published = {768: 859_520_964, 2048: 2_567_463_684}[true_size.components["unet"].config.cross_attention_dim]
    assert footprint.unet == 2 * published
    assert footprint.vae == 2 * 83_653_863
    assert footprint.largest_text <= footprint.text < footprint.unet
    assert 0 < footprint.unet_at_once < footprint.unet / 10


def test_what_a_unet_computes_with(true_size) -> None:  # type: ignore[no-untyped-def]
    with fake():
        counted = peak_of_unet(true_size.components["unet"], 3, 768)
    assert footprint_of(true_size).unet_row_cell * 3 * 96**2 == pytest.approx(counted, rel=0.01)


def test_what_a_vae_computes_with(true_size) -> None:  # type: ignore[no-untyped-def]
    footprint, vae = footprint_of(true_size), true_size.components["vae"]
    with fake():
        decoding, encoding = peak_of_decoder(vae, 768), peak_of_encoder(vae, 768)
    assert footprint.decode_pixel * 768**2 == pytest.approx(decoding, rel=0.01)
    assert footprint.encode_pixel * 768**2 == pytest.approx(encoding, rel=0.01)


def test_fake_tensors_are_counted_as_real_ones(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """The same call with numbers and without."""
    z = torch.randn(1, 4, 16, 16)
    with torch.inference_mode(), Counting() as real:
        tiny_model.vae.network.decode(z, return_dict=False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        fake_z = mode.from_tensor(z)
        with Counting() as fake:
            tiny_model.vae.network.decode(fake_z, return_dict=False)
    assert real.peak > 0 and abs(real.peak - fake.peak) < 0.05 * real.peak


def test_size_of_counts_bytes(tiny_model) -> None:  # type: ignore[no-untyped-def]
    footprint: Footprint = footprint_of(tiny_model)
    unet = tiny_model.unet
    assert footprint.unet == sum(p.numel() for p in unet.parameters()) * 4
    assert footprint.weights == sum(map(size_of, tiny_model.components.values()))
