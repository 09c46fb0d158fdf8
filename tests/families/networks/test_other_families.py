"""SD 2.x and SDXL: the names that their LoRAs have lead to the layers that are meant."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.families import ldm
from modules.families.family import UNTOLD, Model, TextOptions
from modules.families.networks.applied import applied
from modules.families.networks.embeddings import EmbeddingStore
from modules.families.networks.lora import Misfit
from modules.families.sd2 import SD2Family
from modules.families.sdxl import RefinerFamily, SDXLFamily
from modules.library.header import read_header
from modules.library.networks import NetworkLibrary
from tests.families.networks.files import network_from
from tests.families.networks.test_applied import assert_untouched, state
from tests.tiny import FP32, save_tiny_of, tiny_parts

FAMILIES: dict[str, Any] = {"sd2": SD2Family(), "sdxl": SDXLFamily(), "refiner": RefinerFamily()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder, made = tmp_path_factory.mktemp("families"), {}
    for kind, family in FAMILIES.items():
        path = folder / f"{kind}.safetensors"
        save_tiny_of(path, kind, tiny_parts(kind))  # type: ignore[arg-type]
        made[kind] = family.load(path, read_header(path), None, FP32, UNTOLD)
    return made


def change_of(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1


def weights_of(network: Any) -> dict[str, Tensor]:
    return {name: module.weight for name, module in network.named_modules() if hasattr(module, "weight")}


def moved(before: dict[str, Tensor], after: dict[str, Tensor], component: str) -> set[str]:
    return {name for name in before if name.startswith(f"{component}.") and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("naming", ["diffusers", "single file"])
def test_every_layer_of_the_unet_has_both_names(models: dict[str, Model], tmp_path: Path, kind: str, naming: str):
    model = models[kind]
    unet = model.components["unet"]
    weights = weights_of(unet)
    names = dict(ldm.unet_names(unet.state_dict(), unet.config.layers_per_block))
    tensors = {}
    for name, weight in weights.items():
        theirs = names[f"{name}.weight"].removeprefix(ldm.UNET).removesuffix(".weight")
        called = (name if naming == "diffusers" else theirs).replace(".", "_")
        part = "w_norm" if weight.dim() == 1 else "diff"
        tensors[f"lora_unet_{called}.{part}"] = change_of(weight)
    before = state(model)
    with applied(model, [network_from(tmp_path, tensors)]) as report:
        assert report.warnings == []
        after = state(model)
        for name, weight in weights.items():
            torch.testing.assert_close(after[f"unet.{name}.weight"] - before[f"unet.{name}.weight"], change_of(weight))
    assert moved(before, after, "vae") == set()
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("kind", "prefix", "component"),
    [
        ("sd2", "lora_te_text_model_", "text_encoder"),
        ("sdxl", "lora_te1_text_model_", "text_encoder"),
        ("sdxl", "lora_te2_text_model_", "text_encoder_2"),
        ("sdxl", "text_encoder.text_model.", "text_encoder"),
        ("sdxl", "text_encoder_2.text_model.", "text_encoder_2"),
    ],
)
def test_text_encoders(models: dict[str, Model], tmp_path: Path, kind: str, prefix: str, component: str):
    model = models[kind]
    network = model.components[component]
    layer = next(name for name in weights_of(network) if name.endswith("encoder.layers.1.mlp.fc1"))
    called = layer.removeprefix("text_model.")
    name = prefix + (called if prefix.endswith(".") else called.replace(".", "_"))
    change = change_of(weights_of(network)[layer])
    before = state(model)
    with applied(model, [network_from(tmp_path, {f"{name}.diff": change}, text=2.0, unet=0.0)]):
        after = state(model)
    changed = moved(before, after, "text_encoder") | moved(before, after, "text_encoder_2")
    assert changed == {f"{component}.{layer}.weight"}
    key = f"{component}.{layer}.weight"
    torch.testing.assert_close(after[key] - before[key], change * 2)


@pytest.mark.parametrize(("kind", "prefix"), [("sd2", "lora_te_model_"), ("sdxl", "lora_te2_")])
def test_openclips_own_names(models: dict[str, Model], tmp_path: Path, kind: str, prefix: str):
    """The single file's names, from which the checkpoint itself was read."""
    component = "text_encoder" if kind == "sd2" else "text_encoder_2"
    tensors = {
        f"{prefix}transformer_resblocks_1_mlp_c_proj.diff": torch.ones(32, 64),
        f"{prefix}transformer_resblocks_1_attn_in_proj.diff": torch.ones(96, 32),
        f"{prefix}ln_final.w_norm": torch.ones(32),
    }
    model = models[kind]
    before = state(model)
    with applied(model, [network_from(tmp_path, tensors)]) as report:
        after = state(model)
    assert report.warnings == []
    layer = r"encoder.layers.1."
    names = {name.split(layer)[-1] for name in moved(before, after, component) if layer in name}
    assert names == {f"self_attn.{x}_proj.weight" for x in "qkv"} | {"mlp.fc2.weight"}
    assert any("final_layer_norm.weight" in name for name in moved(before, after, component))


def test_what_is_for_another_model_is_left_out_where_it_may_be(models: dict[str, Model], tmp_path: Path):
    to_k = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{to_k}.lora_up.weight": torch.ones(640, 4), f"{to_k}.lora_down.weight": torch.ones(4, 2048)}
    network = network_from(tmp_path, tensors)
    before = state(models["refiner"])
    with pytest.raises(Misfit, match="it is for SDXL, this checkpoint is SDXL refiner"):
        with applied(models["refiner"], [network]):
            raise AssertionError("it was applied")
    with applied(models["refiner"], [network], lenient=True) as report:
        assert_untouched(models["refiner"], before)
    assert report.warnings[0].endswith("it is for SDXL, this checkpoint is SDXL refiner; it was left out")


def test_embeddings_for_both_encoders(models: dict[str, Model], tmp_path: Path):

    (tmp_path / "e").mkdir()
    save_file({"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 32)}, tmp_path / "e" / "zzqx.safetensors")
    save_file({"emb_params": torch.randn(2, 32)}, tmp_path / "e" / "zzqy.safetensors")
    library = NetworkLibrary({"embedding": [tmp_path / "e"]}, tmp_path / "n.db")
    fitted = EmbeddingStore(library).fitted(models["sdxl"])
    with torch.inference_mode():
        with_it = models["sdxl"].encode(["a zzqx b"], TextOptions(embeddings=fitted))
        without = models["sdxl"].encode(["a zzqx b"], TextOptions())
        moved_at = (with_it.cross - without.cross).abs().amax(dim=(0, 1)) > 1e-6
        assert moved_at[:32].any() and moved_at[32:].any()
        assert with_it.vector is not None and without.vector is not None
        assert not torch.equal(with_it.vector, without.vector)
        models["sdxl"].encode(["a zzqy b"], TextOptions(embeddings=fitted))
    told = str(fitted.hashes([["a zzqx b"]])).split(", ")
    assert len(told) == 2 and told[0] == told[1] and told[0].startswith("zzqx: ")
    assert "this checkpoint (SDXL) needs 32 + 32" in fitted.skipped["zzqy"]
