"""Builds transformers' CLIP networks from the tensors of a checkpoint, whichever names it has for them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from modules.families import ldm, open_clip, weights
from modules.families.hints import CONFIGS, Hints, building
from modules.families.upcast import stored_in
from modules.families.weights import Weights
from modules.runtime.device import Placement

TOKENIZER = CONFIGS / "sd1" / "tokenizer"  # all of them read the same vocabulary
OPEN_CLIP_PAD = 0  # the token that fills up OpenCLIP's chunks; CLIP's are filled with the end token
PROJECTION = "text_projection.weight"


def load_clip(file: Weights, prefix: str, base: Mapping[str, Any], hints: Hints, placement: Placement) -> CLIPTextModel:
    """OpenAI's CLIP, by transformers' names. Raises LayoutError, ModelFileError."""
    config = ldm.clip_config(file.header, base, hints, prefix)
    with building("text encoder"):
        network = CLIPTextModel(CLIPTextConfig(**config))
    _fill(network, ldm.clip_names(network.state_dict(), prefix), file, placement)
    return network


def load_open_clip(
    file: Weights, prefix: str, base: Mapping[str, Any], hints: Hints, placement: Placement, projected: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """OpenCLIP, by its own names or by transformers'. `projected`: all of it; else without the projection and, of
    OpenCLIP's own, without the last layer, which SD 2.x does not use. Raises LayoutError, ModelFileError."""
    native = open_clip.is_native(file.header, prefix)
    if native:
        config = open_clip.config(file.header, base, hints, prefix)
        config["num_hidden_layers"] -= 0 if projected else 1
    else:
        config = _transformers_config(file, base, hints, prefix)
    with building("text encoder"):
        settings = CLIPTextConfig(**config)
        network = CLIPTextModelWithProjection(settings) if projected else CLIPTextModel(settings)
    state = network.state_dict()
    if native:
        names = open_clip.names(state, prefix)
    else:
        inner = ldm.clip_prefix(file.header, prefix)
        names = ((name, prefix + name if name == PROJECTION else _inner(name, inner)) for name in state)
    _fill(network, names, file, placement)
    return network


def _transformers_config(file: Weights, base: Mapping[str, Any], hints: Hints, prefix: str) -> dict[str, Any]:
    inner = ldm.clip_prefix(file.header, prefix)
    config = ldm.clip_config(file.header, base, Hints(text_heads=hints.open_clip_heads), inner)
    projection = file.header.tensors.get(prefix + PROJECTION)
    return {**config, "projection_dim": projection.shape[0]} if projection else config


def _inner(name: str, prefix: str) -> str:
    return prefix + name.removeprefix("text_model.")


def _fill(network: Any, names: Iterable[tuple[str, Any]], file: Weights, placement: Placement) -> None:
    names = list(names)
    halves = weights.halves_of(file, names) if placement.keeps_halves else None
    if halves and placement.text_dtype is torch.float32:
        stored_in(network, halves)
    weights.fill(network, names, file, placement.text_dtype, placement.loads_to)
    inner = getattr(network, "text_model", network)
    inner.embeddings.position_ids = torch.arange(network.config.max_position_embeddings, device=placement.loads_to)[
        None
    ]
