"""SD 1.x: a single file of random weights loads into the same networks that were saved; bad files get a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.checkpoints import networks, save_single_file
from modules.families.family import UNTOLD, Conditioning, TextOptions
from modules.families.hints import hints_from
from modules.families.sd1 import SD1, SD1Family
from modules.library.header import ModelFileError, read_header
from modules.runtime.device import Placement
from tests.tiny import FP32, HEADS, TEXT, UNET, VAE


def load(path: Path, placement: Placement = FP32, config: Path | None = None) -> SD1:
    model = SD1Family().load(path, read_header(path), config, placement, UNTOLD)
    assert isinstance(model, SD1)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, Any]:
    unet, vae, text = networks(UNET, VAE, TEXT)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_single_file(path, unet, vae, text, torch.float32, HEADS)
    return path, unet, vae, text


@torch.inference_mode()
def test_networks_come_back_as_they_were_saved(saved: tuple[Path, Any, Any, Any]) -> None:
    path, unet, vae, text = saved
    model = load(path)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([10.0, 500.5])
    context = torch.randn(2, 77, 32)
    torch.testing.assert_close(model.predict_eps(x, t, Conditioning(context)), unet(x, t, context).sample)
    latents = torch.randn(1, 4, 8, 8)
    pixels = (vae.decode(latents / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(latents), pixels)
    ids = torch.tensor([[49406, 320, 2368, *[49407] * 74]])
    torch.testing.assert_close(model.encode(["a cat"], TextOptions()).cross, text(ids).last_hidden_state)


@torch.inference_mode()
def test_bf16_channels_last_is_close_to_fp32(saved: tuple[Path, Any, Any, Any]) -> None:
    half = load(saved[0], Placement(torch.device("cpu"), torch.bfloat16, torch.float32, torch.float32, True))
    assert half.unet.conv_in.weight.dtype is torch.bfloat16
    assert half.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 32)
    whole, rounded = (
        load(saved[0]).predict_eps(x, t, Conditioning(context)),
        half.predict_eps(x, t, Conditioning(context)),
    )
    assert rounded.dtype is torch.float32
    assert (whole - rounded).norm() / whole.norm() < 0.05


@torch.inference_mode()
def test_odd_sizes_keep_their_size(saved: tuple[Path, Any, Any, Any]) -> None:
    model = load(saved[0])
    eps = model.predict_eps(torch.randn(1, 4, 13, 17), torch.tensor([100.0]), Conditioning(torch.randn(1, 77, 32)))
    assert eps.shape == (1, 4, 13, 17)


@torch.inference_mode()
def test_clip_skip_takes_an_earlier_layer(saved: tuple[Path, Any, Any, Any]) -> None:
    model, text = load(saved[0]), saved[3]
    ids = torch.tensor([[49406, 320, 2368, *[49407] * 74]])
    layers = text(ids, output_hidden_states=True).hidden_states
    expected = text.final_layer_norm(layers[-2])
    torch.testing.assert_close(model.encode(["a cat"], TextOptions(clip_skip=2)).cross, expected)
    model.encode(["a cat"], TextOptions(clip_skip=12))  # more than there are: the first layer, no error


@torch.inference_mode()
def test_emphasis_keeps_the_mean_and_moves_the_word(saved: tuple[Path, Any, Any, Any]) -> None:
    model = load(saved[0])
    plain = model.encode(["a red cat"], TextOptions()).cross
    original = model.encode(["a (red:1.5) cat"], TextOptions()).cross
    bare = model.encode(["a (red:1.5) cat"], TextOptions(emphasis="No norm")).cross
    torch.testing.assert_close(original.mean(), plain.mean())
    torch.testing.assert_close(bare[:, 2], plain[:, 2] * 1.5)
    torch.testing.assert_close(bare[:, 1], plain[:, 1])
    torch.testing.assert_close(model.encode(["a (red:1.5) cat"], TextOptions(emphasis="Ignore")).cross, plain)


@torch.inference_mode()
def test_previews_follow_the_decoded_colours(saved: tuple[Path, Any, Any, Any]) -> None:
    model = load(saved[0])
    glimpse = model.glimpse(torch.zeros(1, 4, 8, 8))
    assert glimpse.shape == (1, 3, 8, 8)
    decoded = model.decode(torch.zeros(1, 4, 8, 8)).mean(dim=(2, 3))
    assert (glimpse.mean(dim=(2, 3)) - decoded).abs().max() < 0.15


def test_a_missing_tensor_is_named(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    tensors = load_file(saved[0])
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    del tensors[name]
    save_file(tensors, tmp_path / "hole.safetensors", HEADS)
    with pytest.raises(ModelFileError, match=f"hole.safetensors.*{name}.*missing"):
        load(tmp_path / "hole.safetensors")


def test_a_wrong_shape_is_named(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    tensors = load_file(saved[0])
    tensors["first_stage_model.quant_conv.weight"] = torch.zeros(4, 4, 1, 1)
    save_file(tensors, tmp_path / "odd.safetensors", HEADS)
    with pytest.raises(ModelFileError, match="quant_conv.weight has the shape"):
        load(tmp_path / "odd.safetensors")


def test_other_numbers_of_channels_are_refused(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    tensors = load_file(saved[0])
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 7, 3, 3)
    save_file(tensors, tmp_path / "odd.safetensors", HEADS)
    with pytest.raises(ModelFileError, match="takes 7 channels"):
        load(tmp_path / "odd.safetensors")


def test_a_tensor_of_no_numbers_is_named(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    tensors = load_file(saved[0])
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", HEADS)
    with pytest.raises(ModelFileError, match=rf"nan\.safetensors.*{name}.* 1 values that are no numbers"):
        load(tmp_path / "nan.safetensors")
    tensors[name].view(-1)[7] = 1e6
    save_file(tensors, tmp_path / "large.safetensors", HEADS)
    load(tmp_path / "large.safetensors")
    half = Placement(torch.device("cpu"), torch.float16, torch.float32, torch.float32, False)
    with pytest.raises(ModelFileError, match=r"beyond the range of float16; start with --no-half"):
        load(tmp_path / "large.safetensors", half)


def test_a_broken_yaml_is_named(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("model: [", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"tiny\.yaml"):
        load(saved[0], config=config)


def test_names_cannot_claim_a_million_layers(saved: tuple[Path, Any, Any, Any], tmp_path: Path) -> None:
    tensors = load_file(saved[0])
    prefix = "cond_stage_model.transformer.text_model.encoder.layers."
    tensors[f"{prefix}99999999.mlp.fc1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "tall.safetensors", HEADS)
    with pytest.raises(
        ModelFileError, match=r"tall\.safetensors: of encoder\.layers\.# there are 4, numbered up to 99999999"
    ):
        load(tmp_path / "tall.safetensors")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"unet": {"num_heads": [4]}}, "no UNet can be built of its sizes"),
        ({"unet": {"num_heads": 5}}, "has the shape|no UNet can be built"),
        ({"text_encoder": {"num_attention_heads": 5}}, "its text encoder is 32 wide, which 5 heads can't share"),
        ({"text_encoder": {"hidden_act": "magic"}}, "no text encoder can be built of its sizes"),
        ({"unet": {"num_head_channels": "8"}}, "'8' is no number of heads"),
    ],
)
def test_impossible_sizes_get_a_sentence(
    saved: tuple[Path, Any, Any, Any], tmp_path: Path, sizes: dict[str, Any], reason: str
) -> None:
    fitting = {"unet": {"num_heads": 4}, "text_encoder": {"num_attention_heads": 2}}
    save_file(load_file(saved[0]), tmp_path / "odd.safetensors", {"easel.config": json.dumps({**fitting, **sizes})})
    with pytest.raises(ModelFileError, match=rf"odd\.safetensors: .*{reason}"):
        load(tmp_path / "odd.safetensors")


def test_a_lora_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    assert not SD1Family().matches(read_header(tmp_path / "lora.safetensors"))


def test_the_text_encoder_named_by_the_yaml_is_found_through_a_linked_folder(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "clip-small").mkdir(parents=True)
    (real / "clip-small" / "config.json").write_text('{"num_attention_heads": 7}', encoding="utf-8")
    yaml = (
        "model: {params: {unet_config: {params: {num_heads: 4}}, cond_stage_config: {params: {version: clip-small}}}}"
    )
    (real / "model.yaml").write_text(yaml, encoding="utf-8")
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    assert hints_from(tmp_path / "link" / "model.yaml", {}).text_heads == 7
    outside = yaml.replace("clip-small", "../clip-small")
    (real / "sub").mkdir()
    (real / "sub" / "model.yaml").write_text(outside, encoding="utf-8")
    assert hints_from(real / "sub" / "model.yaml", {}).text_heads is None
