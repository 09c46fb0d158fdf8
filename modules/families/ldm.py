"""The single-file layout of the original "latent diffusion" code: what the tensors of UNet, VAE and CLIP are called,
and what their shapes tell.

Pure functions from a header to diffusers' configs and names; reads no weights. Shared by the families that have it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modules.families.hints import Hints, LayoutError
from modules.library.header import Header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

RESNET_UNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION_VAE = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_config(header: Header, base: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    """`base` with the sizes of this file's UNet. Raises LayoutError if the tensors form no such UNet."""
    shapes = shapes_under(header, UNET)
    widths, resnets, depths = _levels(shapes)
    middle = count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    if depths[-1] not in (0, middle):
        raise LayoutError(f"the UNet's last level has {depths[-1]} transformer blocks, its middle {middle}")
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    cross = next((shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)
    if cross is None:
        raise LayoutError("the UNet has no cross-attention: it can't be steered by a prompt")
    if hints.unet_head_channels:
        heads: int | list[int] = [max(1, width // hints.unet_head_channels) for width in widths]
    else:
        heads = hints.unet_heads or base["attention_head_dim"]
    config = {
        **base,
        "in_channels": shape_of(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": shape_of(shapes, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": resnets,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "transformer_layers_per_block": [depth or middle for depth in depths],
        "cross_attention_dim": cross[1],
        "attention_head_dim": heads,  # diffusers' name for the number of heads, kept for old configs
        "use_linear_projection": len(shapes.get("middle_block.1.proj_in.weight", (0,) * 4)) == 2,
    }
    if "label_emb.0.0.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
    return config


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[int], int, list[int]]:
    """(channels of each level, residual blocks a level, depth of the transformers of each level)."""
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, depth) of each residual block
    for index in range(1, count(shapes, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{index}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
            continue
        channels = shape_of(shapes, f"{block}0.in_layers.2.weight")[0]
        levels[-1].append((channels, count(shapes, re.escape(block) + r"1\.transformer_blocks\.(\d+)\.")))
    resnets = {len(blocks) for blocks in levels}
    if len(resnets) != 1 or 0 in resnets or any(len(set(blocks)) != 1 for blocks in levels):
        raise LayoutError(
            f"the UNet's residual blocks are {levels} (channels, transformers) by level; within a level all should be "
            "alike, and as many in each level"
        )
    return [blocks[0][0] for blocks in levels], resnets.pop(), [blocks[0][1] for blocks in levels]


def vae_config(header: Header, base: Mapping[str, Any], prefix: str = VAE) -> dict[str, Any]:
    """`base` with the sizes of this file's VAE."""
    shapes = shapes_under(header, prefix)
    levels = count(shapes, r"encoder\.down\.(\d+)\.")
    return {
        **base,
        "block_out_channels": [shape_of(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)],
        "layers_per_block": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shape_of(shapes, "post_quant_conv.weight")[1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip_config(header: Header, base: Mapping[str, Any], hints: Hints, prefix: str) -> dict[str, Any]:
    """`base` with the sizes of the CLIP text encoder whose tensors start so."""
    shapes = shapes_under(header, prefix)
    vocabulary, hidden = shape_of(shapes, "embeddings.token_embedding.weight")
    return {
        **base,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "projection_dim": hidden,
        "max_position_embeddings": shape_of(shapes, "embeddings.position_embedding.weight")[0],
        "intermediate_size": shape_of(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": text_heads(hidden, hints.text_heads),
        "hidden_act": hints.text_activation or base["hidden_act"],
    }


def text_heads(hidden: int, stated: int | None) -> int:
    """How many heads share this width; the published CLIPs' and OpenCLIPs' are all 64 wide."""
    heads = stated or max(1, hidden // 64)
    if hidden % heads:
        raise LayoutError(f"its text encoder is {hidden} wide, which {heads} heads can't share")
    return heads


def clip_prefix(header: Header, start: str = TEXT) -> str:
    """Where the text encoder's tensors start; some old files leave `text_model.` out."""
    long = f"{start}text_model."
    return long if f"{long}final_layer_norm.weight" in header.tensors else start


def unet_names(state: Mapping[str, Any], layers_per_block: int) -> Iterator[tuple[str, str]]:
    """(diffusers' name, the file's name) of every tensor of the UNet."""
    for name in state:
        yield name, UNET + _unet_name(name, layers_per_block, state)


def _unet_name(name: str, layers: int, state: Mapping[str, Any]) -> str:
    for ours, theirs in TOP_UNET.items():
        if name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        return _unet_middle(name)
    side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        block = f"input_blocks.{1 + level * (layers + 1) + (layers if kind == 'downsamplers' else index)}"
    else:
        block = f"output_blocks.{level * (layers + 1) + (layers if kind == 'upsamplers' else index)}"
    if kind == "resnets":
        return f"{block}.0.{_renamed(rest, RESNET_UNET)}"
    if kind == "attentions":
        return f"{block}.1.{rest}"
    if kind == "downsamplers":
        return f"{block}.0.op.{rest.removeprefix('conv.')}"
    place = 2 if f"up_blocks.{level}.attentions.0.norm.weight" in state else 1
    return f"{block}.{place}.{rest}"


def _unet_middle(name: str) -> str:
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name)
    if match is None:
        raise LayoutError(f"no place in the single-file layout for the UNet's {name}")
    if match[1] == "attentions":
        return f"middle_block.1.{match[3]}"
    return f"middle_block.{2 * int(match[2])}.{_renamed(match[3], RESNET_UNET)}"


def vae_names(state: Mapping[str, Any], levels: int, prefix: str = VAE) -> Iterator[tuple[str, str]]:
    """(diffusers' name, the file's name) of every tensor of the VAE."""
    for name in state:
        theirs = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
        theirs = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", theirs)
        up = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.+)", theirs)
        if up:
            part = "block" if up[2] == "resnets" else "upsample"
            theirs = f"decoder.up.{levels - 1 - int(up[1])}.{part}.{up[3]}"
        theirs = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", theirs)
        attention = re.match(r"(.+)\.mid_block\.attentions\.0\.(.+)", theirs)
        if attention:
            theirs = f"{attention[1]}.mid.attn_1.{_renamed(attention[2], ATTENTION_VAE)}"
        yield name, prefix + theirs.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def clip_names(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """(transformers' name, the file's name) of every tensor of the text encoder."""
    for name in state:
        yield name, prefix + name.removeprefix("text_model.")


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest


def shapes_under(header: Header, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors whose names start so, by the rest of their names."""
    return {name[len(prefix) :]: info.shape for name, info in header.tensors.items() if name.startswith(prefix)}


def count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many there are of what the pattern numbers from 0. A number left out is refused, so that no name can claim a
    million layers."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    if found and max(found) != len(found) - 1:
        plain = pattern.replace("\\", "").replace("(d+)", "#").rstrip(".")
        raise LayoutError(f"of {plain} there are {len(found)}, numbered up to {max(found)}; the file is incomplete")
    return len(found)


def shape_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise LayoutError(f"the tensor {name!r} is missing; the file is incomplete or of another kind")
    return shapes[name]
