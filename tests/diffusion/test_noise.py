"""Noise against the numbers that A1111 drew."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modules.diffusion.noise import ImageNoise, Source, Variation, philox4x32, slerp

DATA = json.loads((Path(__file__).parents[1] / "data" / "noise.json").read_text())
SHAPE = (4, 24, 16)
SOURCES: tuple[Source, ...] = ("CPU", "NV")


def check(noise: Tensor, key: str) -> None:
    """The data hold both ends of every image, and a column in its middle."""
    wanted = DATA[key]
    assert list(noise.shape) == wanted["shape"]
    for image, numbers in zip(noise, wanted["images"], strict=True):
        flat = image.flatten()
        found = torch.cat([flat[:8], image[1, 9:15, 5], flat[-8:]])
        assert found.tolist() == numbers["head"] + numbers["middle"] + numbers["tail"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("seed", [0, 1, 42, 123456789, 4294967295])
def test_seeds(source: Source, seed: int) -> None:
    noise = ImageNoise(SHAPE, [seed], source)
    for i, draw in enumerate([noise.first(), noise.next(), noise.next()]):
        check(draw, f"{source}|seed{seed}|draw{i}")


@pytest.mark.parametrize("source", SOURCES)
def test_variation(source: Source) -> None:
    noise = ImageNoise(SHAPE, [42, 43], source, variation=Variation((7, 8), 0.3))
    check(noise.first(), f"{source}|seeds42-43|sub7-8@0.3")
    check(noise.next(), f"{source}|seeds42-43|sub7-8@0.3|draw1")


@pytest.mark.parametrize("source", SOURCES)
def test_resize_from_a_smaller_and_a_larger_picture(source: Source) -> None:
    noise = ImageNoise(SHAPE, [42], source, resize_from=(16, 8))
    check(noise.first(), f"{source}|seed42|resizefrom64x128")
    check(noise.next(), f"{source}|seed42|resizefrom64x128|draw1")
    check(ImageNoise(SHAPE, [42], source, resize_from=(32, 32)).first(), f"{source}|seed42|resizefrom256x256")


@pytest.mark.parametrize("source", SOURCES)
def test_later_noise_may_have_another_seed(source: Source) -> None:
    noise = ImageNoise(SHAPE, [42], source, later_seed_delta=31337)
    check(noise.first(), f"{source}|seed42|ensd31337|draw0")
    check(noise.next(), f"{source}|seed42|ensd31337|draw1")


def test_a_picture_has_the_same_noise_alone_and_in_a_batch() -> None:
    alone, batch = ImageNoise(SHAPE, [43]), ImageNoise(SHAPE, [42, 43])
    assert torch.equal(alone.first()[0], batch.first()[1])
    assert torch.equal(alone.next()[0], batch.next()[1])


def test_seeds_of_64_bits_and_more_are_taken() -> None:
    largest = 2**63 - 1
    for source in SOURCES:
        noise = ImageNoise(SHAPE, [largest, 42], source, later_seed_delta=largest)
        assert not torch.equal(noise.first()[0], noise.next()[1])


def test_philox_gives_the_numbers_of_its_paper() -> None:
    """The known answers that come with Random123, of Salmon et al. (2011)."""
    ones = torch.full((4, 1), 0xFFFFFFFF, dtype=torch.int64).numpy().astype("uint32")
    assert philox4x32(ones * 0, 0).ravel().tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox4x32(ones, 2**64 - 1).ravel().tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_slerp_keeps_the_length_and_ends_at_both_noises() -> None:
    a, b = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.5), a)
    assert slerp(a, b, 0.5).std() == pytest.approx(1.0, abs=0.02)
