"""Placement: what card and flags decide. Every card is known by its facts here; none is asked."""

import pytest
import torch

from modules.runtime.device import Card, Placement, card_of, cpu_has_bf16, device_from, placement_from
from modules.runtime.flags import parse

CUDA = torch.device("cuda", 0)
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NEW_CPU, OLD_CPU = Card(torch.device("cpu"), has_bf16=True), Card(torch.device("cpu"))
A100 = Card(CUDA, "NVIDIA A100-SXM4-40GB", (8, 0), True)
CARDS = {
    "2080 Ti": Card(CUDA, "NVIDIA GeForce RTX 2080 Ti", (7, 5)),
    "T4": Card(CUDA, "Tesla T4", (7, 5)),
    "V100": Card(CUDA, "Tesla V100-SXM2-16GB", (7, 0)),
    "1080": Card(CUDA, "NVIDIA GeForce GTX 1080", (6, 1)),
    "A100": A100,
    "4090": Card(CUDA, "NVIDIA GeForce RTX 4090", (8, 9), True),
    "ROCm": Card(CUDA, "AMD Radeon RX 7900 XTX"),
}
BROKEN = {
    "1660": Card(CUDA, "NVIDIA GeForce GTX 1660 SUPER", (7, 5)),
    "1650": Card(CUDA, "NVIDIA GeForce GTX 1650 with Max-Q Design", (7, 5)),
    "MX450": Card(CUDA, "NVIDIA GeForce MX450", (7, 5)),
    "T1000": Card(CUDA, "NVIDIA T1000 8GB", (7, 5)),
    "980": Card(CUDA, "NVIDIA GeForce GTX 980", (5, 2)),
    "MPS": Card(torch.device("mps")),
}


def dtypes(placement: Placement) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    return placement.unet_dtype, placement.text_dtype, placement.vae_dtype


def of(card: Card, *flags: str) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    return dtypes(placement_from(parse(list(flags)), card))


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_run_in_fp16(card: Card) -> None:
    assert of(card) == (FP16, FP16, FP16)
    assert of(card, "--no-half-vae") == (FP16, FP16, FP32)
    assert of(card, "--precision", "half") == (FP16, FP16, FP16)
    for flags in (["--no-half"], ["--precision", "full"], ["--no-half", "--precision", "half", "--upcast-sampling"]):
        assert of(card, *flags) == (FP32, FP32, FP32)
        assert not placement_from(parse(flags), card).upcast


@pytest.mark.parametrize("card", BROKEN.values(), ids=BROKEN)
def test_cards_whose_fp16_is_broken_run_in_fp32_unless_told_otherwise(card: Card) -> None:
    assert of(card) == (FP32, FP32, FP32)
    assert of(card, "--upcast-sampling") == (FP16, FP16, FP32)
    assert of(card, "--precision", "half") == (FP16, FP16, FP16)
    assert of(card, "--precision", "half", "--no-half-vae") == (FP16, FP16, FP32)


def test_a_cpu_uses_bf16_where_it_has_it() -> None:
    assert of(NEW_CPU) == (BF16, FP32, FP32)
    assert of(NEW_CPU, "--precision", "half") == (BF16, BF16, BF16)
    assert of(NEW_CPU, "--precision", "half", "--no-half-vae") == (BF16, BF16, FP32)
    assert of(NEW_CPU, "--no-half") == of(OLD_CPU) == of(OLD_CPU, "--precision", "half") == (FP32, FP32, FP32)
    assert placement_from(parse([]), NEW_CPU).channels_last and not placement_from(parse([]), OLD_CPU).channels_last
    assert not placement_from(parse(["--opt-channelslast"]), OLD_CPU).channels_last
    assert placement_from(parse(["--opt-channelslast"]), A100).channels_last


@pytest.mark.parametrize("card", [A100, NEW_CPU, *BROKEN.values()])
def test_upcast_sampling_needs_halves(card: Card) -> None:
    assert placement_from(parse(["--upcast-sampling"]), card).upcast
    assert not placement_from(parse(["--upcast-sampling", "--no-half"]), card).upcast
    assert not placement_from(parse(["--upcast-sampling"]), OLD_CPU).upcast
    assert not placement_from(parse([]), card).upcast


def test_what_leaves_fp16s_range_gets_bf16_where_the_card_multiplies_it() -> None:
    modern, turing = placement_from(parse([]), A100), placement_from(parse([]), CARDS["2080 Ti"])
    assert dtypes(modern.widened("unet")) == (BF16, FP16, FP16)
    assert dtypes(modern.widened("vae").widened("text")) == (FP16, BF16, BF16)
    assert dtypes(turing.widened("unet")) == (FP32, FP16, FP16)
    upcast = placement_from(parse(["--upcast-sampling"]), CARDS["2080 Ti"])
    assert upcast.widened("vae").upcast and not upcast.widened("unet").upcast  # nothing of it is a half any more
    cpu = placement_from(parse([]), NEW_CPU)
    assert cpu.widened("unet") == cpu


def test_this_machine_is_asked_where_no_card_is_given() -> None:
    flags = parse(["--use-cpu", "all"])
    assert card_of(device_from(flags)).has_bf16 == cpu_has_bf16()
    assert placement_from(flags).unet_dtype is (BF16 if cpu_has_bf16() else FP32)
