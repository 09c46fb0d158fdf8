from typing import Any

import pytest
import torch

from modules.families.family import Model
from modules.families.networks.names import Key, is_of_transformer, key_of, targets_of
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FC1 = "encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("name", "component", "layer", "part"),
    [
        (f"lora_unet_{TO_Q}.lora_down.weight", "unet", TO_Q, "lora_down.weight"),
        (f"lora_unet_{TO_Q}.alpha", "unet", TO_Q, "alpha"),
        ("lora_unet_input_blocks_4_1_proj_in.hada_w1_a", "unet", "input_blocks_4_1_proj_in", "hada_w1_a"),
        (f"lora_te_text_model_{FC1}.lora_up.weight", "text_encoder", FC1, "lora_up.weight"),
        (f"lora_te1_text_model_{FC1}.lokr_w2_b", "text_encoder_1", FC1, "lokr_w2_b"),
        (f"lora_te2_text_model_{FC1}.diff_b", "text_encoder_2", FC1, "diff_b"),
        ("lora_te_model_ln_final.w_norm", "text_encoder", "ln_final", "w_norm"),
        (
            "lora_te2_transformer_resblocks_3_attn_in_proj.diff",
            *("text_encoder_2", "transformer_resblocks_3_attn_in_proj", "diff"),
        ),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            *("unet", TO_Q, "lora_down.weight"),
        ),
        (
            "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.default.weight",
            *("unet", TO_Q, "lora_up.weight"),
        ),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            *("unet", TO_Q, "lora_down.weight"),
        ),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
            *("unet", TO_Q.replace("to_q", "to_out_0"), "lora_up.weight"),
        ),
        ("unet.conv_in.lora.up.weight", "unet", "conv_in", "lora_up.weight"),
        ("unet.conv_in.lora_magnitude_vector", "unet", "conv_in", "lora_magnitude_vector"),
        ("unet.conv_in.lora_magnitude_vector.default.weight", "unet", "conv_in", "lora_magnitude_vector"),
        (
            "diffusion_model.input_blocks.1.1.proj_in.lora_A.weight",
            *("unet", "input_blocks_1_1_proj_in", "lora_down.weight"),
        ),
        (
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",
            *("text_encoder", FC1, "lora_up.weight"),
        ),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "text_encoder_2", FC1, "lora_down.weight"),
        ("lycoris_down_blocks_0_resnets_0_conv1.oft_blocks", "unet", "down_blocks_0_resnets_0_conv1", "oft_blocks"),
        ("lora_unet_conv_in.on_input", "unet", "conv_in", "on_input"),
        ("lora_unet_conv_in.weight", "unet", "conv_in", "weight"),
        ("lora_unet_conv_in.a1.weight", "unet", "conv_in", "a1.weight"),
    ],
)  # fmt: skip
def test_keys(name: str, component: str, layer: str, part: str):
    assert key_of(name) == Key(component, layer, part)


@pytest.mark.parametrize("name", ["emb_params", "model.diffusion_model.out.2.bias", "x", "lora_unet_conv_in", ""])
def test_what_is_no_part_of_a_lora(name: str):
    assert key_of(name) is None


def test_transformers_are_told_apart():
    names = ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "lora_unet_double_blocks_0_img_attn_qkv.alpha"]
    assert all(map(is_of_transformer, [*names, "lora_transformer_single_transformer_blocks_0.alpha"]))
    assert not is_of_transformer(f"lora_unet_{TO_Q}.alpha")


def test_targets_have_all_spellings(tiny_model: Model):
    targets = targets_of(tiny_model)
    unet: Any = tiny_model.components["unet"]
    ours = targets["unet", "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"]
    theirs = targets["unet", "input_blocks_3_1_transformer_blocks_0_attn2_to_k"]
    assert ours.modules == theirs.modules
    assert ours.modules[0] is unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k
    assert targets["unet", "out_2"].modules[0] is unet.conv_out
    assert targets["unet", "time_embed_0"].modules[0] is unet.time_embedding.linear_1
    text = targets["text_encoder", "encoder_layers_1_mlp_fc2"]
    assert text.modules == targets["text_encoder", "transformer_resblocks_1_mlp_c_proj"].modules
    together = targets["text_encoder", "transformer_resblocks_1_attn_in_proj"]
    assert together.weight().shape == (96, 32) and len(together.modules) == 3
    queries = targets["text_encoder", "encoder_layers_1_self_attn_q_proj"].weight()
    assert torch.equal(together.weight()[:32], queries)
    assert not any(component == "text_encoder_1" for component, _ in targets)  # SDXL's names are not for one encoder
