"""Files that hold only a UNet: found out, completed from other files, and told what is missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoints import Kind, original_tensors, save_gguf
from modules.families import ldm
from modules.families.formats import header_of
from modules.families.holder import ModelHolder, Wish
from modules.families.unet_files import completed, is_unet_only
from modules.library.checkpoints import Checkpoint, CheckpointLibrary
from modules.library.header import ModelFileError
from tests.families.test_formats import assert_same_networks
from tests.tiny import FP32, save_tiny_of, tiny_parts

KINDS: tuple[Kind, ...] = ("sd1", "sd2", "sdxl", "refiner")


def unet_of(kind: Kind, seed: int = 0) -> dict[str, Tensor]:
    """By the original names, without prefix."""
    tensors = original_tensors(kind, tiny_parts(kind, seed))
    return {name.removeprefix(ldm.UNET): t.contiguous() for name, t in tensors.items() if name.startswith(ldm.UNET)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of each family, with one seed; UNets with another."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_tiny_of(folder / f"whole-{kind}.safetensors", kind, tiny_parts(kind))
    save_tiny_of(folder / "z-sd1.safetensors", "sd1", tiny_parts("sd1", seed=9))
    return folder


def found(path: Path) -> Checkpoint:
    (checkpoint,) = (one for one in CheckpointLibrary([path.parent], path.parent / "c.db").list() if one.path == path)
    return checkpoint


def holder(folder: Path) -> ModelHolder:
    return ModelHolder(FP32, lenders=lambda: sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("prefix", ["", ldm.UNET, "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_a_whole_checkpoints(folder: Path, tmp_path: Path, kind: Kind, prefix: str) -> None:
    parts, whole = tiny_parts(kind, seed=3), tiny_parts(kind)
    if prefix == "diffusers":
        tensors = {name: tensor.contiguous() for name, tensor in parts.unet.state_dict().items()}
    else:
        tensors = {prefix + name: tensor for name, tensor in unet_of(kind, seed=3).items()}
    path = tmp_path / "only.safetensors"
    metadata = (
        {"easel.config": '{"unet": {"num_heads": 4}}'}
        if kind == "sd1"
        else {"easel.config": '{"unet": {"num_head_channels": 16}}'}
    )
    save_file(tensors, path, metadata)
    model: Any = holder(folder).get(found(path))
    name = f"whole-{kind}"
    assert model.taken == {"Text encoder from": name, "VAE from": name}
    parts = type(parts)(parts.unet, whole.vae, whole.text_encoder, whole.text_encoder_2)
    assert_same_networks(model, parts)


def test_heads_are_the_other_checkpoints_where_the_file_does_not_tell(folder: Path, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "only.gguf", unet_of("sd1", seed=3))
    model: Any = holder(folder).get(found(path))
    assert model.unet.config.attention_head_dim == 4  # as whole-sd1 says; SD 1.x has 8


def test_a_unet_in_gguf(folder: Path, tmp_path: Path) -> None:
    unet = unet_of("sdxl", seed=3)
    path = save_gguf(tmp_path / "only.gguf", unet, "Q8_0", "sdxl")
    model: Any = holder(folder).get(found(path))
    assert model.family == "SDXL"
    assert model.taken["Text encoder from"] == "whole-sdxl"
    near = model.unet.state_dict()["conv_out.weight"]
    torch.testing.assert_close(near, unet["out.2.weight"], rtol=0.02, atol=0.002)


def text_encoder_files(folder: Path, kind: Kind, seed: int = 5) -> tuple[Path, ...]:
    parts = tiny_parts(kind, seed)
    files = []
    for name, network in (("clip_l", parts.text_encoder), ("clip_g", parts.text_encoder_2)):
        if network is not None:
            files.append(folder / f"{name}.safetensors")
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, files[-1])
    return tuple(files)


def test_chosen_text_encoders_go_first(folder: Path, tmp_path: Path) -> None:
    """CLIP-L as transformers calls its tensors without their first part, CLIP-G with it; in any order."""
    path = tmp_path / "only.safetensors"
    save_file(unet_of("sdxl"), path)
    clip_l, clip_g = text_encoder_files(tmp_path, "sdxl")
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(clip_l).items()}
    save_file(tensors, clip_l)
    models = holder(folder)
    model: Any = models.get(found(path), wish=Wish(text_encoders=(clip_g, clip_l)))
    assert model.taken == {"Text encoder from": "clip_l, clip_g", "VAE from": "whole-sdxl"}
    chosen = tiny_parts("sdxl", seed=5)
    for part in ("text_encoder", "text_encoder_2"):
        state = getattr(chosen, part).state_dict()
        for name, tensor in model.components[part].state_dict().items():
            assert torch.equal(tensor, state[name])
    assert models.get(found(path), wish=Wish(text_encoders=(clip_l, clip_g))) is not model  # chosen anew, loaded anew
    other: Any = models.get(found(path), wish=Wish(text_encoders=(clip_l,)))  # not enough: none is taken
    assert other.taken["Text encoder from"] == "whole-sdxl"


def test_text_encoder_and_vae_in_files_are_enough(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "only.safetensors"
    save_file(unet_of("sd1"), path)
    tensors = original_tensors("sd1", tiny_parts("sd1"))
    vae = tmp_path / "vae.safetensors"
    save_file({n.removeprefix(ldm.VAE): t.contiguous() for n, t in tensors.items() if n.startswith(ldm.VAE)}, vae)
    files = text_encoder_files(tmp_path, "sd1")
    with pytest.raises(ModelFileError, match=r"only the UNet of .*there is no VAE for it: .*sd_vae"):
        ModelHolder(FP32).get(found(path), wish=Wish(text_encoders=files))
    model: Any = ModelHolder(FP32).get(found(path), wish=Wish(text_encoders=files, vae=vae))
    assert model.taken == {"Text encoder from": "clip_l", "VAE from": "vae"}


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "only.safetensors"
    save_file({**unet_of("sd1"), "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(32, 768)}, path)
    with pytest.raises(ModelFileError, match=r"the UNet of SD 1\.x, and there is no text encoder for it: .*CLIP-L"):
        holder(folder).get(found(path))
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match="this is no CLIP text encoder"):
        holder(folder).get(found(path), wish=Wish(text_encoders=(tmp_path / "lora.safetensors",)))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "SD 3"),
        ("single_transformer_blocks.0.attn.to_q.weight", "Flux"),
    ],
)
def test_transformers_are_named(tmp_path: Path, name: str, family: str) -> None:
    save_file({name: torch.zeros(4, 4)}, tmp_path / "only.safetensors")
    with pytest.raises(ModelFileError, match=f"a model of the family {family}, which is not supported; known are SD 1"):
        ModelHolder(FP32).get(found(tmp_path / "only.safetensors"))
    save_gguf(tmp_path / "only.gguf", {"blocks.0.x": torch.zeros(4, 4)}, architecture="wan")
    with pytest.raises(ModelFileError, match="a model of the family 'wan', which is not supported"):
        ModelHolder(FP32).get(found(tmp_path / "only.gguf"))


def test_a_whole_checkpoint_is_left_as_it_is(folder: Path) -> None:
    path = folder / "whole-sd1.safetensors"
    header = header_of(path)
    assert not is_unet_only(header)
    assert completed(path, header, None, header_of).header is header  # type: ignore[arg-type]


def test_kept_in_float8_where_the_wish_says_so(folder: Path) -> None:
    models = holder(folder)
    plain: Any = models.get(found(folder / "whole-sd1.safetensors"))
    same = models.get(found(folder / "whole-sd1.safetensors"), wish=Wish(fp8="Enable for SDXL"))
    assert same is plain and not plain.placement.fp8
    kept: Any = models.get(found(folder / "whole-sd1.safetensors"), wish=Wish(fp8="Enable"))
    assert kept.placement.fp8 and kept.unet.mid_block.resnets[0].conv1.weight.dtype is torch.float8_e4m3fn
    xl: Any = models.get(found(folder / "whole-sdxl.safetensors"), wish=Wish(fp8="Enable for SDXL"))
    assert xl.placement.fp8
