"""What headers tell: real files of the layouts that people have, made of names and shapes."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from modules.library.cache import FileCache, FileFacts
from modules.library.facts import Facts, look
from modules.library.hashes import Fingerprint
from modules.library.network_heads import look_at

UNET = "model.diffusion_model."


def save(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None, dtype: str = "F16"
) -> Path:
    """A safetensors file with these tensors; `dtype` must have 2 bytes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + os.urandom(start))
    return path


FIRST = {f"{UNET}input_blocks.0.0.weight": (4, 4, 3, 3), "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "kind", "family"),
    [
        ({**FIRST, "cond_stage_model.transformer.text_model.x.weight": (1,)}, "checkpoint", "SD 1.x"),
        ({**FIRST, "cond_stage_model.model.ln_final.weight": (1,)}, "checkpoint", "SD 2.x"),
        ({**FIRST, "conditioner.embedders.1.model.ln_final.weight": (1,)}, "checkpoint", "SDXL"),
        ({**FIRST, "conditioner.embedders.0.model.ln_final.weight": (1,)}, "checkpoint", "SDXL refiner"),
        ({f"{UNET}joint_blocks.0.x.weight": (1,), "first_stage_model.x": (1,)}, "checkpoint", "SD 3.x"),
        ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (1, 1)}, "unet", "FLUX.1"),
        ({"double_blocks.0.img_attn.qkv.weight": (1, 1)}, "unet", "FLUX.1"),
        (
            {
                f"{UNET}input_blocks.0.0.weight": (1, 4, 3, 3),
                f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (1, 2048),
            },
            "unet",
            "SDXL",
        ),
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1, 768),
          "down_blocks.0.resnets.0.conv1.weight": (1, 1)}, "unet", "SD 1.x"),
        ({"decoder.conv_in.weight": (1, 4, 3, 3), "encoder.conv_in.weight": (1, 3, 3, 3)}, "vae", ""),
        ({"decoder.mid_block.x.weight": (1,), "decoder.up_blocks.0.x.weight": (1,)}, "vae", ""),
        ({"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768)}, "controlnet", "SD 1.x"),
        ({"controlnet_cond_embedding.conv_in.weight": (1, 3),
          "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1, 2048)}, "controlnet", "SDXL"),
        ({"text_model.encoder.layers.0.x.weight": (1,),
          "text_model.embeddings.token_embedding.weight": (2, 768)}, "text_encoder", "CLIP-L"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1), "shared.weight": (2, 4096)},
         "text_encoder", "T5-XXL"),
        ({"conv_first.weight": (1, 3), "conv_last.weight": (1, 1), "body.0.rdb1.conv1.weight": (1, 1),
          "conv_up1.weight": (1, 1), "conv_up2.weight": (1, 1)}, "upscaler", ""),
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768), "lora_unet_x_attn2_to_k.alpha": ()}, "lora", "SD 1.x"),
        ({"unet.x.attn2.to_k.lora_A.weight": (4, 2048)}, "lora", "SDXL"),
        ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 64)}, "lora", "FLUX.1"),
        ({"emb_params": (2, 1024)}, "embedding", "SD 2.x"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "SDXL"),
        ({"something.else.weight": (3, 3), "a.b": (2,)}, "", ""),
    ],
)  # fmt: skip
def test_kind_and_family_by_names_and_shapes(tmp_path: Path, shapes, kind: str, family: str):
    found = look(save(tmp_path / "misleading sdxl flux name.safetensors", shapes))
    assert (found.kind, found.family, found.dtype, found.format) == (kind, family, "F16", "safetensors")
    if kind in ("lora", "embedding"):
        path = save(tmp_path / "again.safetensors", shapes)
        quick = look_at(str(path), kind, path.stat().st_size, 1).facts
        assert (quick.family, quick.dtype, quick.kind) == (family, "F16", kind)
        assert quick.content == look(path).content


def test_what_files_say_of_themselves(tmp_path: Path):
    kohya = {"ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "C:\\models\\ponyV6.safetensors",
             "ss_resolution": "(1024, 1024)"}  # fmt: skip
    told = {"x.lora_down.weight": (4, 4)}
    path = save(tmp_path / "a.safetensors", told, kohya, "BF16")
    found = look_at(str(path), "lora", path.stat().st_size, 1).facts
    assert (found.family, found.base_model, found.resolution) == ("SDXL", "ponyV6.safetensors", "1024x1024")
    assert found.dtype == "BF16" and look(path) == found._replace(prediction="epsilon")
    spec = {"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v",
            "modelspec.resolution": "768x768"}  # fmt: skip
    found = look(save(tmp_path / "b.safetensors", {"x.y": (1,)}, spec))
    assert (found.family, found.prediction, found.resolution) == ("SD 2.x", "v", "768x768")
    marked = {**FIRST, "conditioner.embedders.1.model.ln_final.weight": (1,), "v_pred": ()}
    assert look(save(tmp_path / "c.safetensors", marked)).prediction == "v"
    nonsense = {"modelspec.resolution": "huge", "ss_base_model_version": "<script>"}
    found = look(save(tmp_path / "d.safetensors", {"x.y": (1,)}, nonsense))
    assert (found.resolution, found.family, found.base_model) == ("", "", "<script>")


def test_the_id_is_the_contents_wherever_it_lies(tmp_path: Path):
    shapes = {"a.lora_down.weight": (3, 40_000), "b": (20_000,)}
    path = save(tmp_path / "a.safetensors", shapes)
    id = look(path).content
    (tmp_path / "sub").mkdir()
    moved = path.rename(tmp_path / "sub" / "other.safetensors")
    os.utime(moved, (1, 1))
    assert look(moved).content == id and len(id) == 20
    other = save(tmp_path / "b.safetensors", shapes)
    assert other.stat().st_size == moved.stat().st_size and look(other).content != id
    with moved.open("r+b") as file:  # the very end counts
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert look(moved).content != id


def test_a_folder_has_an_id_of_its_files(tmp_path: Path):
    def build(home: Path, seed: bytes) -> Path:
        for part in ("unet", "vae", "text_encoder"):
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            shapes = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1, 1024)}
            file = save(home / part / f"{stem}.safetensors", shapes)
            file.write_bytes(file.read_bytes()[: -len(seed)] + seed)
            (home / "scheduler").mkdir(exist_ok=True)
            (home / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
        (home / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        return home

    one, same, other = (build(tmp_path / name, bytes(2048 - 1) + seed) for name, seed in (("a", b"1"), ("b", b"1"), ("c", b"2")))  # fmt: skip  # noqa: E501
    assert look(one) == look(same) and look(other).content != look(one).content
    assert look(one)._replace(content="") == Facts("", "diffusers", "SD 2.x", "F16", "v", kind="checkpoint")


def test_a_pickle_tells_by_its_names_and_is_never_run(tmp_path: Path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    encoder = "cond_stage_model.transformer.text_model.embeddings.position_ids.weight"
    content = {**FIRST, encoder: 1, "x": Canary()}
    for protocol in (2, 4):
        with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
        found = look(tmp_path / "x.ckpt")
        assert (found.kind, found.family, found.format) == ("checkpoint", "SD 1.x", "PyTorch")
    assert not (tmp_path / "canary").exists()


def test_facts_outlast_the_process(tmp_path: Path):
    path = save(tmp_path / "a.safetensors", FIRST)
    cache = FileCache(tmp_path / "models.db")
    now = Fingerprint.of(path.stat())
    cache.put([(path, FileFacts(now, checked=True, facts=look(path)))])
    again = FileCache(tmp_path / "models.db").get(path, now)
    assert again is not None and again.checked and again.facts == look(path)
