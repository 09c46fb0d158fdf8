"""Merged checkpoints against the same formula in memory, on real tiny networks; and sentences for what does not fit."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoints import vae_tensors
from modules.families import formats, ldm
from modules.families.formats import header_of, vae_header
from modules.families.loader import read_model
from modules.families.merge import MergeError, MergePlan, Source, header_bytes, merge_plan, write
from modules.library.header import ModelFileError, read_header
from modules.library.recipes import FIRST, Method
from tests.families.test_formats import save_folder
from tests.tiny import FP32, HEADS, save_tiny, save_tiny_of, tiny_parts

POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def abc(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parents")
    return [save_tiny(folder, f"{name}.safetensors", seed) for seed, name in enumerate("abc", start=1)]


def source(path: Path) -> Source:
    return Source(path, header_of(path))


def merged(target: Path, parents: list[Path], method: Method = "Weighted sum", share: float = 0.3, **more: Any) -> Path:
    plan = merge_plan([source(path) for path in parents], method, share, **more)
    return written(plan, target)


def written(plan: MergePlan, target: Path, watch: Callable[[int, int], None] = lambda done, total: None) -> Path:
    with target.open("wb") as file:
        write(plan, header_bytes(plan, HEADS), file, watch)
    return target


def cast(path: Path, target: Path, dtype: torch.dtype) -> Path:
    """Every fortieth tensor, in another dtype."""
    save_file({name: tensor.to(dtype) for name, tensor in list(load_file(path).items())[::40]}, target, HEADS)
    return target


def weighted(a: Tensor, b: Tensor, share: float = 0.3) -> Tensor:
    return a.float() * (1 - share) + b.float() * share


def test_weighted_sum(abc: list[Path], tmp_path: Path) -> None:
    a, b = load_file(abc[0]), load_file(abc[1])
    found = load_file(merged(tmp_path / "x.safetensors", abc[:2]))
    assert found.keys() == a.keys()
    assert all(torch.equal(found[name], weighted(a[name], b[name])) for name in a)
    only_a = load_file(merged(tmp_path / "a.safetensors", abc[:2], share=0))
    assert all(torch.equal(only_a[name], a[name]) for name in a)
    only_b = load_file(merged(tmp_path / "b.safetensors", abc[:2], share=1))
    assert all(torch.equal(only_b[name], b[name]) for name in a)


def test_add_difference(abc: list[Path], tmp_path: Path) -> None:
    a, b, c = map(load_file, abc)
    found = load_file(merged(tmp_path / "x.safetensors", abc, "Add difference", 0.7))
    assert all(torch.equal(found[name], a[name] + (b[name] - c[name]) * 0.7) for name in a)


def test_no_interpolation_is_a_copy(abc: list[Path], tmp_path: Path) -> None:
    a = load_file(abc[0])
    found = load_file(merged(tmp_path / "x.safetensors", abc, "No interpolation"))
    assert found.keys() == a.keys() and all(torch.equal(found[name], a[name]) for name in a)
    half = load_file(merged(tmp_path / "half.safetensors", abc[:1], "No interpolation", half=True))
    assert all(torch.equal(half[name], a[name].half()) for name in a)


F32, F16, BF16, F8, F8_2 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    ("of_a", "of_b", "half", "result"),
    [
        (F16, F16, False, F16),
        (BF16, BF16, False, BF16),
        (F32, F16, False, F32),
        (F16, F32, False, F32),
        (F16, BF16, False, F32),  # neither holds the other's values
        (F16, F8, False, F16),
        (F8, BF16, False, BF16),
        (F8, F8, False, F8),
        (F8, F8_2, False, F16),
        (F32, BF16, True, F16),
        (F8, F8, True, F16),
    ],
)
def test_dtypes(
    abc: list[Path], tmp_path: Path, of_a: torch.dtype, of_b: torch.dtype, half: bool, result: torch.dtype
) -> None:
    a = cast(abc[0], tmp_path / "a.safetensors", of_a)
    b = cast(abc[1], tmp_path / "b.safetensors", of_b)
    found = load_file(merged(tmp_path / "x.safetensors", [a, b], half=half))
    stored_a, stored_b = load_file(a), load_file(b)
    assert len(found) > 10
    for name, tensor in found.items():
        assert tensor.dtype == result
        expected = weighted(stored_a[name], stored_b[name]).to(result)
        assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), name


def test_wide_values_lie_at_multiples_of_their_width(abc: list[Path], tmp_path: Path) -> None:
    a = load_file(abc[0])
    for name in list(a)[::2]:
        a[name] = a[name].half()
    a |= {
        "odd": torch.ones(3, dtype=torch.uint8),
        "wide": torch.ones(2, dtype=torch.float64),
        "flag": torch.tensor(True),
    }
    save_file(a, tmp_path / "a.safetensors")
    path = merged(tmp_path / "x.safetensors", [tmp_path / "a.safetensors", abc[1]])
    for info in read_header(path).tensors.values():
        width = {"F64": 8, "F32": 4, "F16": 2}.get(info.dtype, 1)
        assert info.start % width == 0
    found = load_file(path)
    assert all(torch.equal(found[name], a[name]) for name in ("odd", "wide", "flag"))


def test_a_merged_checkpoint_is_a_model(abc: list[Path], tmp_path: Path) -> None:
    model = read_model(merged(tmp_path / "x.safetensors", abc[:2]), FP32)
    first, second = (read_model(path, FP32) for path in abc[:2])
    for part, network in model.components.items():
        a, b = first.components[part].state_dict(), second.components[part].state_dict()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, weighted(a[name], b[name]), rtol=0, atol=0)


def test_an_inpainting_model_keeps_what_plain_ones_do_not_have(abc: list[Path], tmp_path: Path) -> None:
    special = {
        channels: save_tiny_of(tmp_path / f"{channels}.safetensors", "sd1", tiny_parts("sd1", 7, channels))
        for channels in (8, 9)
    }
    b, c = load_file(abc[1]), load_file(abc[2])
    for channels, path in special.items():
        a = load_file(path)
        plan = merge_plan([source(path), source(abc[1])], "Weighted sum", 0.4)
        assert plan.special == {8: "instruct-pix2pix", 9: "inpainting"}[channels]
        found = load_file(written(plan, tmp_path / "x.safetensors"))
        assert torch.equal(found[FIRST][:, :4], weighted(a[FIRST][:, :4], b[FIRST], 0.4))
        assert torch.equal(found[FIRST][:, 4:], a[FIRST][:, 4:])
        added = load_file(merged(tmp_path / "y.safetensors", [path, *abc[1:]], "Add difference", 1))
        assert torch.equal(added[FIRST][:, :4], a[FIRST][:, :4] + (b[FIRST] - c[FIRST]))
        assert torch.equal(added[FIRST][:, 4:], a[FIRST][:, 4:])
    both = merge_plan([source(special[9]), source(special[9])], "Weighted sum", 0.5)
    assert both.special == "" and both.size == read_header(special[9]).size - header_size(special[9])
    with pytest.raises(MergeError, match=r"9\.safetensors is an inpainting model and a\.safetensors is not: .* as A"):
        merge_plan([source(abc[0]), source(special[9])], "Weighted sum", 0.5)
    with pytest.raises(MergeError, match="B and C must be plain models both"):
        merge_plan([source(special[9]), source(special[9]), source(abc[0])], "Add difference", 0.5)


def header_size(path: Path) -> int:
    return min(info.start for info in read_header(path).tensors.values())


@pytest.mark.parametrize(
    ("kind", "half"),
    [("original", False), ("original", True), ("pickled", False), ("diffusers", False), ("checkpoint", False)],
)
def test_another_vae_is_baked_in(abc: list[Path], tmp_path: Path, kind: str, half: bool) -> None:
    other = tiny_parts("sd1", seed=9)
    tensors = {name: tensor.contiguous() for name, tensor in vae_tensors(other.vae).items()}
    path = tmp_path / "vae.safetensors"
    if kind == "original":
        save_file(tensors, path)
    elif kind == "pickled":
        path = tmp_path / "vae.vae.pt"
        torch.save({"state_dict": tensors | {"loss.logvar": torch.zeros(())}, "global_step": 7}, path)
    elif kind == "diffusers":
        other.vae.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
    else:
        save_tiny_of(path, "sd1", other)
    vae = Source(path, vae_header(path))
    a, b = load_file(abc[0]), load_file(abc[1])
    found = load_file(merged(tmp_path / "x.safetensors", abc[:2], vae=vae, half=half))
    assert found.keys() == a.keys()
    for name, tensor in found.items():
        if name.startswith(ldm.VAE):
            expected = tensors[name.removeprefix(ldm.VAE)].reshape(a[name].shape)
        else:
            expected = weighted(a[name], b[name])
        assert torch.equal(tensor, expected.half() if half else expected), name


def test_what_is_no_vae_for_this_model_gets_a_sentence(abc: list[Path], tmp_path: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}, tmp_path / "wide.safetensors")
    save_file({"lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(MergeError, match=r"wide\.safetensors is no VAE for this model: .*64×16×3×3, not 64×4×3×3"):
        merge_plan([source(abc[0])], "No interpolation", 0, vae=source(tmp_path / "wide.safetensors"))
    with pytest.raises(ModelFileError, match=r"lora\.safetensors: this is no VAE"):
        merge_plan([source(abc[0])], "No interpolation", 0, vae=source(tmp_path / "lora.safetensors"))


def test_a_vae_fills_the_place_of_one_that_is_not_there(abc: list[Path], tmp_path: Path) -> None:
    a = {name: tensor for name, tensor in load_file(abc[0]).items() if not name.startswith(ldm.VAE)}
    save_file(a, tmp_path / "a.safetensors", HEADS)
    path = merged(tmp_path / "x.safetensors", [tmp_path / "a.safetensors"], "No interpolation", vae=source(abc[1]))
    b, found = load_file(abc[1]), load_file(path)
    assert found.keys() == b.keys()
    assert all(torch.equal(found[name], (b if name.startswith(ldm.VAE) else a)[name]) for name in found)
    read_model(path, FP32)


def test_pickles_and_folders(abc: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_parts("sd1", 5)
    folder = save_folder(tmp_path / "folder", "sd1", parts)
    single = load_file(save_tiny_of(tmp_path / "single.safetensors", "sd1", parts))
    a = load_file(abc[0])
    torch.save({"state_dict": {**a, "turned": torch.arange(6.0).view(2, 3).T}, "epoch": 3}, tmp_path / "a.ckpt")
    found = load_file(merged(tmp_path / "x.safetensors", [tmp_path / "a.ckpt", folder]))
    assert all(torch.equal(found[name], weighted(a[name], single[name])) for name in single)
    assert torch.equal(found["turned"], torch.arange(6.0).view(2, 3).T)
    mapped: list[Path] = []
    load = formats._load
    monkeypatch.setattr(formats, "_load", lambda path: mapped.append(path) or load(path))
    monkeypatch.setattr(formats, "MAPPED_ANEW", 2**20)
    again = load_file(merged(tmp_path / "y.safetensors", [tmp_path / "a.ckpt", folder]))
    assert len(mapped) > 5  # its pages were given back in between
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_names_without_text_model_and_position_ids(abc: list[Path], tmp_path: Path) -> None:
    a, b = load_file(abc[0]), load_file(abc[1])
    old = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in b.items()}
    old["cond_stage_model.transformer.embeddings.position_ids"] = torch.ones(1, 77)
    assert old.keys() != b.keys()
    positions = torch.arange(77)[None]
    save_file({**a, POSITIONS: positions}, tmp_path / "a.safetensors", HEADS)
    save_file(old, tmp_path / "b.safetensors", HEADS)
    plan = merge_plan([source(tmp_path / f"{name}.safetensors") for name in "ab"], "Weighted sum", 0.3)
    found = load_file(written(plan, tmp_path / "x.safetensors"))
    assert plan.warnings == ()
    assert all(torch.equal(found[name], weighted(a[name], b[name])) for name in a)
    assert torch.equal(found[POSITIONS], positions)


def test_what_one_lacks_is_told(abc: list[Path], tmp_path: Path) -> None:
    a, b = load_file(abc[0]), load_file(abc[1])
    mean = "model_ema.diffusion_modelout2bias"  # averages are merged where both have them, and missed by nobody
    del b["model.diffusion_model.out.2.bias"]
    save_file({**b, mean: torch.ones(2), f"{ldm.UNET}more": torch.ones(1)}, tmp_path / "b.safetensors")
    save_file({**a, mean: torch.zeros(2)}, tmp_path / "a.safetensors")
    plan = merge_plan([source(tmp_path / f"{name}.safetensors") for name in "ab"], "Weighted sum", 0.3)
    assert plan.warnings == (
        "1 tensors are not in b.safetensors and stay A's, such as model.diffusion_model.out.2.bias",
        f"1 tensors of B have no place in A and are left out, such as {ldm.UNET}more",
    )
    found = load_file(written(plan, tmp_path / "x.safetensors"))
    assert torch.equal(found["model.diffusion_model.out.2.bias"], a["model.diffusion_model.out.2.bias"])
    assert torch.equal(found[mean], torch.full((2,), 0.3)) and f"{ldm.UNET}more" not in found


def test_discarded_tensors_are_not_even_read(abc: list[Path], tmp_path: Path) -> None:
    a = load_file(abc[0])
    save_file({**a, "bad": torch.full((4,), torch.nan)}, tmp_path / "a.safetensors")
    bad = [tmp_path / "a.safetensors"]
    with pytest.raises(MergeError, match=r"a\.safetensors: the tensor 'bad' holds 4 values that are no numbers"):
        merged(tmp_path / "x.safetensors", bad, "No interpolation")
    vae = frozenset(name for name in a if name.startswith(ldm.VAE))
    found = load_file(merged(tmp_path / "x.safetensors", bad, "No interpolation", discarded=vae | {"bad"}))
    assert found.keys() == a.keys() - vae
    with pytest.raises(MergeError, match="nothing would be left"):
        merged(tmp_path / "x.safetensors", bad, "No interpolation", discarded=frozenset([*a, "bad"]))


def test_values_that_are_no_numbers_name_their_tensor(abc: list[Path], tmp_path: Path) -> None:
    b = load_file(abc[1])
    name = "model.diffusion_model.out.0.weight"
    b[name][3] = torch.inf
    save_file(b, tmp_path / "b.safetensors", HEADS)
    with pytest.raises(MergeError, match=rf"b\.safetensors: the tensor '{name}' holds 1 values that are no numbers"):
        merged(tmp_path / "x.safetensors", [abc[0], tmp_path / "b.safetensors"])
    b[name][3] = 3e5
    save_file(b, tmp_path / "b.safetensors", HEADS)
    with pytest.raises(MergeError, match=rf"the merged tensor '{name}' has values beyond the range of F16"):
        merged(tmp_path / "x.safetensors", [abc[0], tmp_path / "b.safetensors"], half=True)
    merged(tmp_path / "x.safetensors", [abc[0], tmp_path / "b.safetensors"])


def test_what_does_not_fit_together_gets_a_sentence(abc: list[Path], tmp_path: Path) -> None:
    def refused(parents: list[Path], match: str, method: Method = "Weighted sum") -> None:
        with pytest.raises((MergeError, ModelFileError), match=match):
            merge_plan([source(path) for path in parents], method, 0.5)

    xl = save_tiny_of(tmp_path / "xl.safetensors", "sdxl", tiny_parts("sdxl"))
    refused([abc[0], xl], r"A \(a\.safetensors\) is SD 1\.x, B \(xl\.safetensors\) is SDXL")
    refused([abc[0], abc[1], xl], r"A .* is SD 1\.x, B .* is SD 1\.x, C \(xl\.safetensors\) is SDXL", "Add difference")
    folder = save_folder(tmp_path / "folder", "sdxl", tiny_parts("sdxl"))
    refused([xl, folder], r"A and B store conditioner\.embedders\.1 by different names")
    assert merge_plan([source(folder), source(folder)], "Weighted sum", 0.5).warnings == ()
    a = load_file(abc[0])
    name = "model.diffusion_model.time_embed.0.weight"
    save_file({**a, name: torch.zeros(8, 8)}, tmp_path / "small.safetensors")
    refused(
        [abc[0], tmp_path / "small.safetensors"], rf"{name} has the shape 128×32 in a\.safetensors and 8×8 in small"
    )
    save_file({**a, f"{name[:-7]}.scale_weight": torch.ones(())}, tmp_path / "scaled.safetensors")
    refused([abc[0], tmp_path / "scaled.safetensors"], r"scaled\.safetensors: its weights are quantised")
    save_file({**a, name: torch.zeros(4, dtype=torch.uint8)}, tmp_path / "packed.safetensors")
    refused([tmp_path / "packed.safetensors", abc[1]], r"packed\.safetensors: its weights are quantised \(.*: U8\)")
    save_file({"x.lora_up.bias": torch.ones(2)}, tmp_path / "lora.safetensors")
    save_file({"y.lora_up.bias": torch.ones(2)}, tmp_path / "other.safetensors")
    refused([abc[0], tmp_path / "lora.safetensors"], r"B \(lora\.safetensors\) is of an unknown family")
    refused([tmp_path / "lora.safetensors", tmp_path / "other.safetensors"], "has no tensor that lora.safetensors has")


def test_it_can_be_stopped_between_pieces(abc: list[Path], tmp_path: Path) -> None:
    plan = merge_plan([source(path) for path in abc[:2]], "Weighted sum", 0.5)
    told: list[tuple[int, int]] = []

    class Stop(Exception):
        pass

    def watch(done: int, total: int) -> None:
        told.append((done, total))
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        written(plan, tmp_path / "x.safetensors", watch)
    assert {total for _, total in told} == {plan.size}
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(told))
    assert told[-1][0] < plan.size


def test_metadata_that_would_make_the_file_unreadable_are_refused(abc: list[Path]) -> None:
    plan = merge_plan([source(abc[0])], "No interpolation", 0)
    with pytest.raises(MergeError, match=r"the metadata \(\d+ characters\) make the header longer than 16 MiB"):
        header_bytes(plan, {"modelspec.thumbnail": "x" * 2**24})
