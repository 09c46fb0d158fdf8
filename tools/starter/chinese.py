"""Stage chinese: the text encoder learns that 红苹果 means what "red apple" means, before it sees a picture.

CLIP's vocabulary has hardly a Chinese character: a prompt in Chinese is a row of UTF-8 bytes. MiniLM gives all lone
bytes the same embedding, so theirs are drawn anew and learnt here, with the rest of the encoder, by distillation: from
the end token on, the Chinese sentence must give what the English one gave before, and so must the English one.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from tools.starter.artwork import Concept, Drawing, load_concepts
from tools.starter.captions import BACKGROUNDS, DEFAULT_STYLE, WHITE, caption_zh, with_telling_tags
from tools.starter.networks import mixed_precision
from tools.starter.runstate import Plan, generators, keep, resumed
from tools.starter.sources import STYLES
from tools.starter.text import EMBEDDING_DEVIATION, END, START, byte_letters, load_tokenizer

log = logging.getLogger(__name__)

BATCH = 48  # pairs of sentences
LENGTH, LONG = 32, 77  # tokens that a step sees; longer sentences are cut. One step in four sees all of the window
KEEP_EVERY = 3  # steps; in these the English sentences are also held where they were


def teach_chinese(
    run: Path, styles: Sequence[str], text: CLIPTextModel, plan: Plan, seed: int, device: torch.device
) -> None:
    """Goes on where `chinese/state.pt` ends; leaves the encoder in `run/chinese`."""
    folder = run / "chinese"
    folder.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(run)
    drawings = with_telling_tags([Drawing(DEFAULT_STYLE, concept) for concept in load_concepts(run)])
    concepts = [drawing.concept for drawing in drawings if drawing.concept.name_zh]
    teacher = copy.deepcopy(text).to(device).eval().requires_grad_(False)
    student = text.to(device).train()
    words = student.get_input_embeddings().weight
    foreign = byte_tokens(run).to(device)  # (49408,), 1 where the row may move
    distinguish_bytes(words, foreign, seed)
    words.register_hook(lambda gradient: gradient * foreign[:, None])
    parameters = [p for p in student.parameters() if p is not words]
    groups = [{"params": parameters, "full_rate": plan.rate}, {"params": [words], "full_rate": 3 * plan.rate}]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, weight_decay=0.0)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {
        "teacher": teacher,
        "student": student,
        "optimizer": optimizer,
    }
    counters = resumed(folder, parts, step=0, elapsed_s=0.0)
    step, elapsed_s = counters["step"], counters["elapsed_s"]

    def save() -> None:
        keep(folder, parts, step=step, elapsed_s=elapsed_s)
        student.save_pretrained(folder)

    def tokens(sentences: Sequence[str], length: int) -> Tensor:
        found = tokenizer(
            list(sentences), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return found.input_ids.to(device)  # (B, length)

    saved_s, now = elapsed_s, time.monotonic()
    while not plan.done(elapsed_s):
        rng, _ = generators(seed, step)
        pairs = [sentence_pair(concepts[k], styles, rng) for k in rng.integers(len(concepts), size=BATCH)]
        length = LONG if step % 4 == 0 else LENGTH
        english, chinese = (tokens(side, length) for side in zip(*pairs, strict=True))
        holds = step % KEEP_EVERY == 0
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * plan.factor(step, elapsed_s)
        with mixed_precision(device):
            wanted = teacher(english).last_hidden_state.float()  # (B, length, hidden)
            found = student(torch.cat([chinese, english]) if holds else chinese).last_hidden_state.float()
        miss = _at_and_behind_end(found[:BATCH], chinese, wanted, english)
        loss = miss
        if holds:
            drift = (found[BATCH:] - wanted).square().mean()
            loss = loss + drift
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if step % 100 == 0:
            spread = 2 * wanted[:, -1].var(0).mean().item()
            line = f"{elapsed_s / 60:.1f} min, step {step}, Chinese misses {miss.item():.4f} of {spread:.4f}"
            log.info("%s, English moved %.4f", line, drift.item())
        if elapsed_s - saved_s > 120:
            saved_s = elapsed_s
            save()
    save()


def sentence_pair(concept: Concept, styles: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """The same wish in plain English and in some form of Chinese."""
    style = str(rng.choice(styles)) if rng.random() < 0.4 else DEFAULT_STYLE
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.3 else WHITE
    english = concept.name
    if style != DEFAULT_STYLE:
        english += f", {rng.choice(STYLES[style].words)}"
    if background != WHITE:
        english += f", {background} background"
    return english, caption_zh(Drawing(style, concept), background, rng)


def byte_tokens(run: Path) -> Tensor:
    """(49408,) 1.0 for each token of the vocabulary that is not plain ASCII, else 0."""
    vocabulary: dict[str, int] = json.loads((run / "tokenizer" / "vocab.json").read_text("utf-8"))
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    foreign = torch.zeros(len(vocabulary))
    for token, number in vocabulary.items():
        if number < START:
            foreign[number] = any(byte_of[letter] > 127 for letter in token.removesuffix("</w>"))
    return foreign


@torch.no_grad()
def distinguish_bytes(words: Tensor, foreign: Tensor, seed: int) -> None:
    """Gives the tokens outside ASCII embeddings of their own, unless an earlier run has. words: (49408, hidden)."""
    lone = [number for number in range(256) if foreign[number]]
    if words[lone].std(0).mean() > 0.2 * EMBEDDING_DEVIATION:
        return
    generator = torch.Generator().manual_seed(seed)
    fresh = EMBEDDING_DEVIATION * torch.randn(words.shape, generator=generator).to(words.device)
    words.copy_(torch.where(foreign[:, None] > 0, fresh, words))


def _at_and_behind_end(found: Tensor, ids: Tensor, wanted: Tensor, wanted_ids: Tensor) -> Tensor:
    """Mean squared difference at the end tokens, and where both sentences are over. All (B, length, …)."""
    ends = (ids == END).int().argmax(1), (wanted_ids == END).int().argmax(1)
    each = torch.arange(len(ids), device=ids.device)
    at_end = F.mse_loss(found[each, ends[0]], wanted[each, ends[1]])
    over = torch.arange(ids.shape[1], device=ids.device) > torch.maximum(*ends)[:, None]  # (B, length)
    behind = (found - wanted).square().mean(-1)[over]
    return at_end + (behind.mean() if len(behind) else 0)
