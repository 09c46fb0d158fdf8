from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.families.family import UNTOLD, Model, TextOptions
from modules.families.networks.applied import applied
from modules.families.networks.tensors import NetworkFiles
from modules.families.sd1 import SD1Family
from modules.library.header import ModelFileError, read_header
from modules.library.network_tags import Network
from modules.runtime.device import Placement
from tests.families.networks.files import CONV, FC1, TO_Q, every_kind, network_from, network_of
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

X, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0, 20.0])


def outputs(model: Model) -> tuple[Tensor, Tensor]:
    """What the text encoder and the UNet give."""
    with torch.inference_mode():
        conditioning = model.encode(["a red circle", "b"], TextOptions())
        return conditioning.cross.clone(), model.predict_eps(X, T, conditioning).clone()


def state(model: Model) -> dict[str, Tensor]:
    components: dict[str, Any] = dict(model.components)
    return {f"{c}.{n}": t.clone() for c, network in components.items() for n, t in network.state_dict().items()}


def assert_untouched(model: Model, before: dict[str, Tensor]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_every_kind_moves_the_picture_and_is_undone_bit_by_bit(tiny_model: Model, tmp_path: Path):
    network = network_from(tmp_path, every_kind())
    before, plain = state(tiny_model), outputs(tiny_model)
    with applied(tiny_model, [network]) as report:
        moved = outputs(tiny_model)
    assert report.warnings == []
    for one, other in zip(plain, moved, strict=True):
        assert (one - other).norm() > 0.05 * one.norm()
    assert_untouched(tiny_model, before)
    assert all(torch.equal(one, other) for one, other in zip(plain, outputs(tiny_model), strict=True))


def test_beside_the_weights_gives_the_same(tiny_model: Model, tmp_path: Path):
    networks = [network_from(tmp_path, every_kind(), unet=0.8, text=0.5)]
    before = state(tiny_model)
    with applied(tiny_model, networks):
        merged = outputs(tiny_model)
    with applied(tiny_model, networks, functional=True):
        assert_untouched(tiny_model, before)
        beside = outputs(tiny_model)
    for one, other in zip(merged, beside, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert torch.equal(outputs(tiny_model)[1], outputs(tiny_model)[1])


def test_weights_are_for_text_and_unet(tiny_model: Model, tmp_path: Path):
    network = network_from(tmp_path, {f"{TO_Q}.diff": torch.ones(32, 32), f"{FC1}.diff": torch.ones(64, 32)})
    weighted = Network(network.file, "net", unet=0.5, text=-2.0)
    unet: Any = tiny_model.components["unet"]
    text: Any = tiny_model.components["text_encoder"]
    to_q = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    fc1 = next(module for name, module in text.named_modules() if name.endswith("layers.0.mlp.fc1")).weight
    q, f = to_q.detach().clone(), fc1.detach().clone()
    with applied(tiny_model, [weighted, weighted]):  # twice counts twice
        torch.testing.assert_close(to_q.detach() - q, torch.full_like(q, 1.0), rtol=0, atol=1e-5)
        torch.testing.assert_close(fc1.detach() - f, torch.full_like(f, -4.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("functional", [False, True])
def test_an_exception_undoes_too(tiny_model: Model, tmp_path: Path, functional: bool):
    before = state(tiny_model)
    with pytest.raises(KeyError), applied(tiny_model, [network_from(tmp_path, every_kind())], functional):
        raise KeyError
    assert_untouched(tiny_model, before)
    plain = outputs(tiny_model)
    broken = network_from(tmp_path, {f"{TO_Q}.diff": torch.full((32, 32), torch.nan)}, name="nan")
    with pytest.raises(ModelFileError), applied(tiny_model, [network_from(tmp_path, every_kind()), broken], functional):
        pass
    assert_untouched(tiny_model, before)
    assert torch.equal(plain[1], outputs(tiny_model)[1])


def test_half_precision_comes_back_bit_by_bit(tiny_folder: Path, tmp_path: Path):
    half = Placement(torch.device("cpu"), torch.bfloat16, torch.bfloat16, torch.bfloat16, channels_last=True)
    path = tiny_folder / "tiny.safetensors"
    model = SD1Family().load(path, read_header(path), None, half, UNTOLD)
    before = state(model)
    with applied(model, [network_from(tmp_path, every_kind())]):
        assert all(t.dtype == torch.bfloat16 for name, t in state(model).items() if name.endswith("weight"))
    assert_untouched(model, before)


def test_names_of_all_sorts_change_the_same_layer(tiny_model: Model, tmp_path: Path):
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    spellings = {
        "kohya": (f"{TO_Q}.lora_up.weight", f"{TO_Q}.lora_down.weight"),
        "single file": tuple(
            f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{part}.weight" for part in ("up", "down")
        ),
        "peft": tuple(
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight" for part in "BA"
        ),
        "diffusers": tuple(
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{part}.weight"
            for part in ("up", "down")
        ),
    }
    given = []
    for name, (up_name, down_name) in spellings.items():
        with applied(tiny_model, [network_from(tmp_path, {up_name: up, down_name: down}, name=name)]) as report:
            assert report.warnings == []
            given.append(outputs(tiny_model)[1])
    assert all(torch.equal(given[0], other) for other in given)


def test_openclip_keeps_three_matrices_as_one(tiny_model: Model, tmp_path: Path):
    change = torch.randn(96, 32)
    names = [f"lora_te_text_model_encoder_layers_1_self_attn_{letter}_proj.diff" for letter in "qkv"]
    apart = network_from(tmp_path, dict(zip(names, change.split(32), strict=True)), name="apart")
    together = network_from(tmp_path, {"lora_te_model_transformer_resblocks_1_attn_in_proj.diff": change}, name="one")
    with applied(tiny_model, [apart]):
        first = outputs(tiny_model)[0]
    with applied(tiny_model, [together]):
        torch.testing.assert_close(outputs(tiny_model)[0], first)


def test_diffusers_says_alpha_in_the_metadata(tiny_model: Model, tmp_path: Path):
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.randn(4, 32), f"{layer}.lora_B.weight": torch.randn(32, 4)}
    stated = '{"unet.lora_alpha": 2, "unet.r": 4, "unet.alpha_pattern": %s, "unet.use_rslora": %s}'
    given = []
    for pattern, rslora, weight in (("{}", "false", 2.0), ('{"attn1.to_q": 8}', "false", 0.5), ("{}", "true", 1.0)):
        metadata = {"lora_adapter_metadata": stated % (pattern, rslora)}
        with applied(tiny_model, [network_from(tmp_path, tensors, metadata, unet=weight)]):
            given.append(outputs(tiny_model)[1])
    for other in given[1:]:  # 2 · 2/4 = 0.5 · 8/4 = 1 · 2/√4
        torch.testing.assert_close(given[0], other)


def sdxl(width: int = 2048) -> dict[str, Tensor]:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{key}.lora_up.weight": torch.ones(640, 4), f"{key}.lora_down.weight": torch.ones(4, width)}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (sdxl(), "it is for SDXL, this checkpoint is SD 1.x"),
        (sdxl(1024), "it is for SD 2.x, this checkpoint is SD 1.x"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)}, "0 of 1 keys match: it is for SDXL"),
        (
            {"lora_unet_input_blocks_8_1_proj_in.alpha": torch.ones(1)},
            "0 of 1 keys match this checkpoint, which is SD 1",
        ),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1)}, "for a model without UNet"),
        ({"model.diffusion_model.out.2.bias": torch.ones(1)}, "it is no LoRA: its tensors are called model.diffusion"),
        ({f"{TO_Q}.diff": torch.full((32, 32), torch.inf)}, "attn1_to_q.*holds .*NaN or infini"),
        ({f"{TO_Q}.lora_up.weight": torch.ones(32, 0), f"{TO_Q}.lora_down.weight": torch.ones(0, 32)}, "rank is 0"),
        ({f"{TO_Q}.diff": torch.ones(32, 33)}, r"\(32, 33\) does not fit one of \(32, 32\)"),
    ],
)
def test_what_cannot_be_applied_is_an_error_that_names_the_file(
    tiny_model: Model, tmp_path: Path, tensors: dict[str, Tensor], reason: str
):
    before = state(tiny_model)
    with pytest.raises(ModelFileError, match=f"^net.safetensors: .*{reason}"):
        with applied(tiny_model, [network_from(tmp_path, tensors)]):
            raise AssertionError("it was applied")
    assert_untouched(tiny_model, before)


def test_single_layers_without_a_place_are_a_warning(tiny_model: Model, tmp_path: Path):
    tensors = every_kind() | {
        "lora_unet_nowhere.alpha": torch.ones(1),
        f"{CONV}.lora_down.weight": torch.ones(4, 9, 3, 3),
    }
    with applied(tiny_model, [network_from(tmp_path, tensors | {"strange": torch.ones(1)})]) as report:
        (warning,) = report.warnings
    assert warning.startswith("net.safetensors: no place in this checkpoint for strange, nowhere, ")
    assert CONV in warning and "(64, 32, 3, 3)" in warning


def test_alpha_0_is_told(tiny_model: Model, tmp_path: Path):
    tensors = every_kind() | {f"{TO_Q}.alpha": torch.tensor(0.0)}
    with applied(tiny_model, [network_from(tmp_path, tensors)]) as report:
        assert report.warnings == ["net.safetensors: alpha is 0 in 1 of its layers, they change nothing"]


def test_a_truncated_file_is_refused(tiny_model: Model, tmp_path: Path):
    network = network_from(tmp_path, every_kind())
    network.file.path.write_bytes(network.file.path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="incomplete"), applied(tiny_model, [network]):
        pass


def test_old_files_of_pytorch(tiny_model: Model, tmp_path: Path):
    torch.save(every_kind(), tmp_path / "old.pt")
    with applied(tiny_model, [network_from(tmp_path, every_kind())]):
        expected = outputs(tiny_model)
    with applied(tiny_model, [network_of(tmp_path / "old.pt", "lora")]) as report:
        assert torch.equal(outputs(tiny_model)[1], expected[1]) and report.warnings == []


def test_embeddings_inside_of_loras(tiny_model: Model, tmp_path: Path):
    inside = {"bundle_emb.my emb.string_to_param.*": torch.ones(2, 32)}
    with applied(tiny_model, [network_from(tmp_path, every_kind() | inside)]) as report:
        embedding = report.embeddings["my emb"]
    assert embedding.vectors == 2 and embedding.bundled and report.warnings == []
    with applied(tiny_model, [network_from(tmp_path, inside, name="only")]) as report:
        assert list(report.embeddings) == ["my emb"]


def test_without_networks_nothing_happens(tiny_model: Model):
    plain = outputs(tiny_model)
    with applied(tiny_model, []) as report:
        assert torch.equal(outputs(tiny_model)[1], plain[1])
    assert report.warnings == [] and report.embeddings == {}


def test_metadata_that_are_no_json(tmp_path: Path, tiny_model: Model):
    layer = "unet.conv_in"
    broken = network_from(tmp_path, {f"{layer}.lora_A.weight": torch.ones(1)}, {"lora_adapter_metadata": "{"})
    with pytest.raises(ModelFileError, match="lora_adapter_metadata are no JSON"), applied(tiny_model, [broken]):
        pass


def test_files_stay_in_memory_as_many_as_are_wanted(tiny_model: Model, tmp_path: Path):
    """What is applied of them is the same; a file that has changed is read anew."""
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        half = {
            f"{TO_Q}.lora_up.weight": torch.randn(64, 2).half(),
            f"{TO_Q}.lora_down.weight": torch.randn(2, 64).half(),
        }
        save_file({**half, f"{FC1}.diff": torch.randn(64, 32)}, path)
    networks = [network_of(path, "lora") for path in paths]
    files = NetworkFiles()

    def results(*chosen: Network) -> list[Tensor]:
        with applied(tiny_model, chosen, files=files):
            return list(state(tiny_model).values())

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    plain = results(*networks)
    assert files.kept() == ()
    files.room = 2
    assert same(results(*networks), plain)
    assert files.kept() == tuple(paths)
    assert same(results(*networks), plain)
    files.room = 1
    assert same(results(networks[0]), results(networks[0]))
    assert files.kept() == (paths[0],)
    before = results(networks[0])
    save_file({f"{FC1}.diff": torch.randn(64, 32)}, paths[0])
    assert not same(results(networks[0]), before)
    paths[0].unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        results(networks[0])
