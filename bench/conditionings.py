"""What keeping conditionings between jobs saves: a text encoder of SD 1.5's size, on this machine's CPU.

python -m bench.conditionings       needs 0.5 GB of memory
"""

import time
from typing import Any

import torch
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from bench.checkpoints import TOKENIZER
from modules.families.family import Conditioning, TextOptions
from modules.families.hints import config_of
from modules.families.text import ClipEncoder
from modules.generation.prompts import Conditionings, Encoder
from modules.prompt.tokens import Tokenizer

PROMPT = "a photograph of an astronaut riding a horse, (highly detailed:1.2), sharp focus, 35 mm"
NEGATIVE = "blurry, low quality, watermark"


class TextOnly:
    """As much of a model as encodes."""

    def __init__(self) -> None:
        network: Any = CLIPTextModel(CLIPTextConfig(**config_of("sd1", "text_encoder"))).eval()
        self.encoder = ClipEncoder(network, Tokenizer.from_folder(TOKENIZER), torch.device("cpu"))

    def text_key(self, texts: Any, options: TextOptions, negative: bool = False) -> Any:
        return self.encoder.key(texts, options)

    def encode(self, texts: Any, options: TextOptions, negative: bool = False) -> Conditioning:
        return Conditioning(self.encoder.encode(texts, options))


@torch.inference_mode()
def main() -> None:
    model: Any = TextOnly()
    kept = Conditionings()
    for repeated in range(3):  # the first is a warm-up
        for what, of_earlier in (("encoded", Conditionings()), ("kept", kept)):
            encoder = Encoder(model, TextOptions(), of_earlier)
            wall, cpu = time.perf_counter(), time.process_time()
            encoder.group([PROMPT])
            encoder.group([NEGATIVE], negative=True)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeated:
                print(f"{what:8} {wall:8.4f} s, {cpu:8.4f} s of it at work")
    print(f"kept: {kept.bytes_of(model) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
