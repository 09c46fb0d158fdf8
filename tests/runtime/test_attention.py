"""Every way of attending against torch's own in float64, and which of them is taken."""

import logging
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from modules.runtime import attention
from modules.runtime.attention import (
    AUTOMATIC,
    NONE,
    SDP,
    SDP_NO_MEM,
    SUB_QUADRATIC,
    XFORMERS,
    Wanted,
    backend_for,
    by_xformers,
    plain,
    sdp,
    sdp_no_mem,
    sub_quadratic,
    upcast,
    wanted_by,
)
from modules.runtime.flags import parse
from modules.settings.schema import SETTINGS

CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
WAYS = {
    "sdp": sdp,
    "sdp-no-mem": sdp_no_mem,
    "plain": plain,
    "whole": sub_quadratic,
    "queries": lambda *qkvm: sub_quadratic(*qkvm, queries=16),
    "keys": lambda *qkvm: sub_quadratic(*qkvm, queries=16, keys=7, whole_keys=0),
    "root": lambda *qkvm: sub_quadratic(*qkvm, queries=1000, whole_keys=0),
}


def tensors(queries: int, keys: int, channels: int = 40, strength: float = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(queries * keys)
    return (
        torch.randn(2, 3, queries, channels) * strength,
        torch.randn(2, 3, keys, channels),
        torch.randn(2, 3, keys, channels),
    )


def error(made: Tensor, exact: Tensor) -> float:
    return float((made.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (37, 53), (50, 77), (1, 1), (33, 1)])
def test_exact_in_fp32(way: str, queries: int, keys: int):
    q, k, v = tensors(queries, keys)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    made = WAYS[way](q, k, v, None)
    assert made.shape == exact.shape and made.dtype is torch.float32
    assert error(made, exact) < 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_halves_within_their_rounding(way: str, dtype: torch.dtype):
    """Against the exact result of the rounded tensors. Logits are rounded once more where a matrix product gives them;
    torch's own kernel keeps them in fp32."""
    q, k, v = (x.to(dtype) for x in tensors(70, 77, strength=1))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    made = WAYS[way](q, k, v, None)
    assert made.dtype is dtype
    assert error(made, exact) < torch.finfo(dtype).eps * (0.5 if way.startswith("sdp") else 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 77), (1, 1, 30, 77), (2, 3, 30, 77)])
def test_masks(way: str, shape: tuple[int, ...]):
    q, k, v = tensors(30, 77)
    mask = torch.randn(shape)
    mask[..., ::3] = -math.inf
    mask[..., :9] = -math.inf  # a whole slice of keys
    exact = scaled_dot_product_attention(*(x.double() for x in (q, k, v)), attn_mask=mask.double())
    assert error(WAYS[way](q, k, v, mask), exact) < 1e-6


def test_slices_neither_overflow_nor_lose_rows_that_see_nothing():
    q, k, v = tensors(20, 30, strength=1)
    k = k * 1000  # logits in the hundreds
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(WAYS["keys"](q, k, v, None), exact) < 1e-4
    mask = torch.zeros(1, 1, 20, 30)
    mask[:, :, 3] = -math.inf
    made = WAYS["keys"](q, k, v, mask)
    assert made[:, :, 3].abs().max() == 0 and made.isfinite().all()


def test_keys_are_cut_only_where_their_logits_would_take_too_much(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    rows = attention._rows
    monkeypatch.setattr(attention, "_rows", lambda *given: (sizes.append(given[4]), rows(*given))[1])
    q, k, v = tensors(64, 64)
    sub_quadratic(q, k, v, queries=32, whole_keys=2 * 3 * 32 * 64 * 4)
    sub_quadratic(q, k, v, queries=32, whole_keys=2 * 3 * 32 * 64 * 4 - 1, keys=10)
    assert sizes == [64, 64, 10, 10]


def test_77_keys_of_a_prompt_are_filled_up_without_a_trace():
    q, k, v = (x.bfloat16() for x in tensors(64, 77, strength=1))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(sdp(q, k, v), exact) <= error(scaled_dot_product_attention(q, k, v), exact) * 1.1


def test_upcast():
    q, k, v = (x.bfloat16() for x in tensors(64, 64))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    made = upcast(plain, q, k, v)
    assert made.dtype is torch.bfloat16 and error(made, exact) < 0.5 * error(plain(q, k, v), exact)


def test_automatic_is_what_the_machine_does_best():
    names = [backend_for(AUTOMATIC, Wanted(), device).name for device in (CPU, CUDA, OTHER)]
    assert names == ["sdp", "sdp", "sub-quadratic"]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (SDP, "sdp"),
        (SDP_NO_MEM, "sdp-no-mem"),
        (SUB_QUADRATIC, "sub-quadratic"),
        ("InvokeAI", "sub-quadratic"),
        ("Doggettx", "sub-quadratic"),
        ("V1 - original v1", "sub-quadratic"),
        (NONE, "none"),
    ],
)
def test_settings_choose(setting: str, name: str):
    backend = backend_for(setting, Wanted(XFORMERS), CPU)  # the flag counts with "Automatic" only
    assert backend.name == name and not backend.missing
    q, k, v = tensors(20, 77)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(backend.attend(q, k, v, None), exact) < 1e-6


def test_every_choice_of_the_setting_is_known():
    assert {AUTOMATIC, SDP, SDP_NO_MEM, SUB_QUADRATIC, XFORMERS, NONE, *attention.SLICED} == set(
        SETTINGS["cross_attention_optimization"].choices or ()
    )


def test_another_way_of_slicing_is_told(caplog: pytest.LogCaptureFixture):
    attention._say.cache_clear()
    with caplog.at_level(logging.INFO):
        backend_for("Doggettx", Wanted(), CPU)
        backend_for("Doggettx", Wanted(), CPU)
    (line,) = caplog.messages
    assert "Doggettx" in line and "sub-quadratic" in line


def test_xformers_that_is_not_there_is_told_and_torchs_own_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "xformers_attention", lambda: None)
    backend = backend_for(AUTOMATIC, wanted_by(parse(["--xformers"])), CUDA)
    assert (backend.name, backend.attend) == ("sdp", sdp)
    assert "xformers" in backend.missing and "not installed" in backend.missing


def test_xformers_is_given_its_own_layout(monkeypatch: pytest.MonkeyPatch):
    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.is_contiguous() and q.shape == (2, 20, 3, 40)
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    found = lambda q, k, v, mask: by_xformers(theirs, q, k, v, mask)  # noqa: E731
    monkeypatch.setattr(attention, "xformers_attention", lambda: found)
    assert "does not run on cpu" in backend_for(XFORMERS, Wanted(), CPU).missing
    backend = backend_for(XFORMERS, Wanted(), CUDA)
    q, k, v = tensors(20, 77)
    assert backend.name == "xformers"
    torch.testing.assert_close(backend.attend(q, k, v, None), sdp(q, k, v))
    wide = tensors(4, 4, channels=512)  # a VAE's
    torch.testing.assert_close(backend.attend(*wide, None), sdp(*wide))


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], Wanted()),
        (["--xformers", "--opt-sdp-attention"], Wanted(XFORMERS)),
        (["--force-enable-xformers"], Wanted(XFORMERS)),
        (["--opt-sdp-no-mem-attention", "--opt-sdp-attention"], Wanted(SDP_NO_MEM)),
        (["--opt-sdp-attention"], Wanted(SDP)),
        (["--opt-split-attention"], Wanted(SUB_QUADRATIC)),
        (["--opt-split-attention-v1"], Wanted(SUB_QUADRATIC)),
        (["--opt-split-attention-invokeai"], Wanted(SUB_QUADRATIC)),
        (["--disable-opt-split-attention"], Wanted(NONE)),
        (
            ["--opt-sub-quad-attention", "--sub-quad-q-chunk-size", "256", "--sub-quad-kv-chunk-size", "64"],
            Wanted(SUB_QUADRATIC, 256, 64),
        ),
        (["--sub-quad-chunk-threshold", "30"], Wanted(AUTOMATIC, percent=30)),
    ],
)
def test_flags(flags: list[str], wanted: Wanted):
    assert wanted_by(parse(flags)) == wanted


def test_the_threshold_is_a_share_of_the_devices_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention.Memory, "total", lambda memory: 1000)
    assert attention.sliced_as(Wanted(percent=30), CPU).keywords["whole_keys"] == 300
