"""Small network files for the tiny model, and networks that name them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.library.network_tags import Network
from modules.library.networks import Kind, NetworkLibrary

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # (32, 32)
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"  # (64, 32, 3, 3)
NORM = "lora_unet_down_blocks_0_attentions_0_norm"  # a GroupNorm of 32 channels
LAYER_NORM = "lora_te_text_model_encoder_layers_0_layer_norm1"  # of 32
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"  # (64, 32)


def network_from(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    name: str = "net",
    **weights: float,
) -> Network:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return network_of(path, "lora", **weights)


def network_of(path: Path, kind: Kind, **weights: float) -> Network:
    library = NetworkLibrary({kind: [path.parent]}, path.parent / "cache" / "networks.db")
    file = next(file for file in library.list(kind) if file.path == path)
    return replace(Network(file, file.name), **weights)


def every_kind() -> dict[str, Tensor]:
    """One layer of most kinds, all of which move the output."""
    torch.manual_seed(5)

    def small(*shape: int) -> Tensor:
        return torch.randn(*shape) * 0.2

    up = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn"
    return {
        f"{TO_Q}.lora_up.weight": small(32, 4),
        f"{TO_Q}.lora_down.weight": small(4, 32),
        f"{TO_Q}.alpha": torch.tensor(2.0),
        f"{CONV}.lora_up.weight": small(64, 4, 1, 1),
        f"{CONV}.lora_down.weight": small(4, 32, 3, 3),
        f"{CONV}.dora_scale": torch.rand(1, 32, 1, 1) + 0.5,
        f"{NORM}.w_norm": small(32),
        f"{NORM}.b_norm": small(32),
        f"{LAYER_NORM}.w_norm": small(32),
        f"{LAYER_NORM}.b_norm": small(32),
        f"{FC1}.diff": small(64, 32),
        f"{FC1}.diff_b": small(64),
        f"{up}1_to_v.oft_blocks": small(8, 8, 8),
        f"{up}2_to_v.weight": small(64),
        f"{up}2_to_v.on_input": torch.tensor(0),
        f"{up}2_to_k.diff": small(64, 32),
        f"{up}2_to_k.diff_b": small(64),  # the layer has no bias
        "lora_te_text_model_embeddings_token_embedding.diff": small(49408, 32),
    }
