"""Stages lora and inversion: what lies beside the starter, made for it with `modules/training` on the same objective.

A LoRA that draws everything in another art style, and a textual inversion: a word for a thing that the starter does not
know. Both with cards: a preview picture, and A1111's user metadata.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.inversion import NewWord, embedding_file, known
from modules.training.lora import adapted, kohya_metadata, kohya_weights, make_adapter
from modules.training.objective import drop_captions, scaled_linear_alphas_bar, stratified_timesteps, training_loss
from tools.starter.artwork import Drawing, draw, listed_concepts, load_concepts
from tools.starter.captions import DEFAULT_STYLE, WHITE, caption, with_telling_tags
from tools.starter.export import load_exported
from tools.starter.latents import encode
from tools.starter.networks import SCALE, mixed_precision, use_fast_attention
from tools.starter.runstate import Plan, generators
from tools.starter.sampling import decode, sample_latents, tile
from tools.starter.sources import STYLES, WORDS, attributions
from tools.starter.text import VOCABULARY, load_tokenizer

log = logging.getLogger(__name__)

LORA_STYLE = "flat"
LORA_NAME = f"starter-{LORA_STYLE}"
LORA_LIMIT = 1.5 * 2**20  # bytes
RANK = 16
LORA_CARD = ("red apple", "cat face", "house with garden", "rocket")

NEW_THING, LIKE = "full moon face", "moon"  # a concept that is not in concepts.txt, and a word to begin with
INVERSION_NAME = f"starter-{NEW_THING.replace(' ', '-')}"
VECTORS = 4
PLACEHOLDER = "<new word>"

Batch = tuple[Tensor, list[str]]  # latents (B, 4, h, w), and captions


@dataclass(frozen=True)
class Starter:
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    tokenizer: CLIPTokenizer

    def context(self, captions: Sequence[str], word: NewWord | None = None) -> Tensor:
        """(B, 77, hidden); the placeholder in a caption becomes the new word's tokens."""
        rows = [self._tokens(text, word) for text in captions]
        found: Tensor = self.text(torch.tensor(rows, device=self.text.device)).last_hidden_state
        return found

    def _tokens(self, text: str, word: NewWord | None) -> list[int]:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pieces = text.split(PLACEHOLDER)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number and word:
                ids += word.tokens()
            ids += self.tokenizer(piece, add_special_tokens=False).input_ids
        ids = [start, *ids[:75], end]
        return ids + [end] * (77 - len(ids))


def load_starter(checkpoint: Path, run: Path, device: torch.device) -> Starter:
    unet, vae, text = (part.to(device).requires_grad_(False) for part in load_exported(checkpoint))
    use_fast_attention(unet, text, device)
    return Starter(unet, vae, text, load_tokenizer(run))


def make_lora(run: Path, checkpoint: Path, folder: Path, plan: Plan, seed: int, device: torch.device) -> None:
    starter = load_starter(checkpoint, run, device)
    concepts = listed_concepts(load_concepts(run))
    drawn = list(draw(run, LORA_STYLE, concepts))
    z = _latents(starter, np.stack([picture for _, picture in drawn]))
    # said as if it were the default style: the LoRA, not the caption, brings the other one
    drawings = with_telling_tags([Drawing(DEFAULT_STYLE, concept) for concept, _ in drawn])
    adapter = make_adapter(starter.unet, RANK, alpha=RANK, seed=seed)
    adapter.parts.to(device)

    def batch(rng: np.random.Generator) -> Batch:
        picked = rng.integers(len(drawings), size=16)
        return z[torch.from_numpy(picked)], [caption(drawings[k], WHITE, rng) for k in picked]

    with adapted(starter.unet, adapter):
        _fit(starter, adapter.parameters(), batch, lambda said: starter.context(said), plan, seed)
        card = _card(starter, LORA_CARD, starter.context)
    package = STYLES[LORA_STYLE].package
    facts = {
        "ss_sd_model_name": checkpoint.name,
        "ss_output_name": LORA_NAME,
        "ss_training_comment": f"{LORA_STYLE} style; trained on {package.what}, {package.licence}",
        "modelspec.title": LORA_NAME,
        "modelspec.license": f"Apache-2.0; trained on {package.what} ({package.licence})",
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{LORA_NAME}.safetensors"
    save_file(kohya_weights(adapter), file, metadata=kohya_metadata(adapter, facts))
    file.chmod(0o644)
    if file.stat().st_size > LORA_LIMIT:
        raise ValueError(f"the LoRA may have {LORA_LIMIT:.0f} bytes, got {file.stat().st_size}: choose a smaller rank")
    describe = f"Draws what the starter knows in a flat style. Trained on {package.what} by {package.authors}."
    _save_card(file, card, describe, [LORA_STYLE])


def make_inversion(run: Path, checkpoint: Path, folder: Path, plan: Plan, seed: int, device: torch.device) -> None:
    starter = load_starter(checkpoint, run, device)
    concept = next(concept for concept in load_concepts(run) if concept.name == NEW_THING)
    said = Drawing(DEFAULT_STYLE, replace(concept, name=PLACEHOLDER, tags=(), name_zh=""))
    # One drawing, as it is: of several, or of one moved by some pixels, the vectors could ask for nothing but the mean.
    [(_, picture)] = draw(run, DEFAULT_STYLE, [concept])
    z = _latents(starter, picture[None])
    table = starter.text.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    first = starter.tokenizer(LIKE, add_special_tokens=False).input_ids[0]
    noise = 0.01 * torch.randn(VECTORS, table.embedding_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    word = NewWord(table.weight[first] + noise, VOCABULARY)

    def batch(rng: np.random.Generator) -> Batch:
        return z.expand(8, -1, -1, -1), [caption(said, WHITE, rng) for _ in range(8)]

    with known(table, word):
        _fit(starter, [word.vectors], batch, lambda captions: starter.context(captions, word), plan, seed)
        card = _card(starter, [PLACEHOLDER] * 4, lambda captions: starter.context(captions, word))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{INVERSION_NAME}.safetensors"
    save_file(embedding_file(word), file, metadata={"name": INVERSION_NAME, "sd_checkpoint_name": checkpoint.stem})
    file.chmod(0o644)
    describe = f"A word for a thing that the starter was not taught: a {NEW_THING}. Write {INVERSION_NAME} in a prompt."
    _save_card(file, card, describe, [DEFAULT_STYLE])


def _fit(
    starter: Starter,
    parameters: list[nn.Parameter],
    batch: Callable[[np.random.Generator], Batch],
    context: Callable[[Sequence[str]], Tensor],
    plan: Plan,
    seed: int,
) -> None:
    """Algorithm 1 of Ho et al. on the few parameters that learn."""
    device = starter.unet.device
    alphas_bar = scaled_linear_alphas_bar().to(device)
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=0.0)
    step, elapsed_s, now, losses = 0, 0.0, time.monotonic(), []
    while not plan.done(elapsed_s):
        rng, generator = generators(seed, step)
        x0, said = batch(rng)
        said = drop_captions(said, 0.1, generator)
        t = stratified_timesteps(len(x0), generator).to(device)
        epsilon = torch.randn(x0.shape, generator=generator).to(device)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * plan.factor(step, elapsed_s)
        with mixed_precision(device):
            asked = context(said)

            def predict(x: Tensor, t: Tensor, asked: Tensor = asked) -> Tensor:
                return starter.unet(x, t, asked).sample

            loss = training_loss(predict, x0.to(device), t, epsilon, alphas_bar, snr_gamma=1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.weighted.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        losses.append(loss.weighted.item())
        if step % 50 == 0:
            log.info("%.1f min, step %d, loss %.4f", elapsed_s / 60, step, np.mean(losses[-50:]))


@torch.no_grad()
def _latents(starter: Starter, pictures: np.ndarray) -> Tensor:
    """(N, 4, h, w) of RGBA pictures, on white, as the UNet sees them."""
    return encode(starter.vae, pictures, [(k, WHITE) for k in range(len(pictures))])[0] * SCALE


def _card(starter: Starter, prompts: Sequence[str], context: Callable[[Sequence[str]], Tensor]) -> np.ndarray:
    z = sample_latents(starter.unet, starter.text, starter.tokenizer, prompts, encode=context)
    return decode(starter.vae, z)


def _save_card(file: Path, pictures: np.ndarray, description: str, styles: Sequence[str]) -> None:
    file.with_suffix(".LICENSES.md").write_text(attributions(file.name, styles, WORDS), "utf-8")
    tile(pictures, 2).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
        file.with_suffix(".png"), optimize=True
    )
    card = {"description": description, "sd version": "SD1", "activation text": "", "preferred weight": 1}
    file.with_suffix(".json").write_text(json.dumps(card, indent=4) + "\n", "utf-8")
    log.info("%s: %.0f KiB", file.name, file.stat().st_size / 1024)
