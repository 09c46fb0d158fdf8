"""OpenCLIP's text encoders (ViT-H of SD 2.x, ViT-bigG of SDXL) as the original checkpoints store them: names and sizes.
They become transformers' CLIP networks."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modules.families.hints import Hints
from modules.families.ldm import count, shape_of, shapes_under, text_heads
from modules.families.weights import Piece
from modules.library.header import Header

LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def is_there(header: Header, prefix: str) -> bool:
    """Whether there is such a text encoder, by either kind of names."""
    return is_native(header, prefix) or f"{prefix}text_model.final_layer_norm.weight" in header.tensors


def is_native(header: Header, prefix: str) -> bool:
    """Whether the tensors that start so have OpenCLIP's own names."""
    return f"{prefix}ln_final.weight" in header.tensors


def config(header: Header, base: Mapping[str, Any], hints: Hints, prefix: str) -> dict[str, Any]:
    """`base` with the sizes of the text encoder whose tensors start so."""
    shapes = shapes_under(header, prefix)
    vocabulary, hidden = shape_of(shapes, "token_embedding.weight")
    projection = shapes.get("text_projection", (hidden, hidden))
    return {
        **base,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "projection_dim": projection[1],
        "max_position_embeddings": shape_of(shapes, "positional_embedding")[0],
        "intermediate_size": shape_of(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": count(shapes, r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": text_heads(hidden, hints.open_clip_heads),
    }


def names(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str | Piece]]:
    """(transformers' name, where it is in the file) of every tensor of the text encoder."""
    for name in state:
        own = name.removeprefix("text_model.")
        if own == "text_projection.weight":
            yield name, Piece(f"{prefix}text_projection", turned=True)  # x @ W there, a linear layer here
        elif own in TOP:
            yield name, prefix + TOP[own]
        else:
            yield name, _layer_name(own, prefix)


def _layer_name(name: str, prefix: str) -> str | Piece:
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match is not None, name
    block = f"{prefix}transformer.resblocks.{match[1]}."
    for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if match[2] == f"self_attn.{part}":
            return Piece(f"{block}attn.in_proj_{match[3]}", number, 3)
    return f"{block}{LAYER[match[2]]}.{match[3]}"
