"""The kinds of models, by the words that pages and the API use."""

from typing import Literal, get_args

Kind = Literal[
    "checkpoint", "vae", "lora", "embedding", "hypernetwork", "upscaler", "controlnet", "text_encoder", "unet"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
