"""Stage unet: UNet and text encoder learn together to draw what a caption says, on cached latents.

The run lives in `unet/`: `state.pt` to resume from, `unet` and `text_encoder` with the averaged weights to sample with,
`log.txt`, and sheets of samples.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel

from modules.training.objective import (
    EMA,
    drop_captions,
    min_snr_weight,
    scaled_linear_alphas_bar,
    stratified_timesteps,
    training_loss,
)
from tools.starter.artwork import Drawing
from tools.starter.captions import DEFAULT_STYLE, WHITE, caption
from tools.starter.latents import CELLS, LARGER, Latents, larger_exist, load_latents
from tools.starter.networks import UNetSizes, load_unet, make_unet, mixed_precision, use_fast_attention
from tools.starter.runstate import Plan, generators, keep, resumed
from tools.starter.sampling import PROMPTS, encode_prompts, save_sheet
from tools.starter.team import Team
from tools.starter.text import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UNetTraining:
    plan: Plan
    batch_size: int
    seed: int
    text_rate: float = 0.4  # learning rate of the text encoder, of the UNet's
    snr_gamma: float = 0.1  # low: with few, flat pictures the noisier half, where shapes form, is the hard one
    fine_snr_gamma: float = 0.5  # while the rate falls: the shapes are there, now edges want to be clean
    least_density: float = 0.1  # of timesteps whose weight in the loss is smaller still, 0-1
    dropout: float = 0.1  # part of the captions replaced by "", 0-1: classifier-free guidance
    chinese: float = 0.12  # part of the captions in Chinese, 0-1
    larger: float = 0.15  # part of the steps on larger pictures, if the stage latents has made any, 0-1
    default_style: float = 0.7  # part of the samples in the style that needs no word, 0-1
    coloured: float = 0.1  # weight of a picture on a coloured background against one on white
    meet_every: int = 16  # steps: the processes average their weights, and the running mean moves on
    save_every_s: float = 180
    sheet_every_s: float = 1800


def begin_unet(run: Path, warm: Path | None, training: UNetTraining, device: torch.device, team: Team) -> None:
    """Trains, from the weights in `warm` or from nothing, with the text encoder that the stage chinese left."""
    text = CLIPTextModel.from_pretrained(run / "chinese")
    torch.manual_seed(training.seed)
    unet = load_unet(warm / "unet") if warm else make_unet(UNetSizes(), text.config.hidden_size)
    train_unet(run, training, unet, text, device, team)


def train_unet(
    run: Path,
    training: UNetTraining,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    device: torch.device,
    team: Team = Team(),  # noqa: B008 – frozen
) -> None:
    """Goes on where `state.pt` ends; `unet` and `text` are where a new run starts."""
    folder = run / "unet"
    folder.mkdir(exist_ok=True)
    text.get_input_embeddings().weight.requires_grad_(False)  # words that no caption has must keep their meaning
    unet.to(device).train()
    text.to(device).train()
    use_fast_attention(unet, text, device)
    decay = 0.999**training.meet_every
    unet_mean, text_mean = EMA(unet, decay), EMA(text, decay)
    rate = training.plan.rate
    groups = [
        {"params": list(unet.parameters()), "full_rate": rate},
        {"params": [p for p in text.parameters() if p.requires_grad], "full_rate": rate * training.text_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    parts = {
        "unet": unet,
        "text": text,
        "unet_mean": unet_mean.module,
        "text_mean": text_mean.module,
        "optimizer": optimizer,
    }
    counters = resumed(folder, parts, step=0, samples=0, elapsed_s=0.0, updates=0)
    step, samples, elapsed_s = counters["step"], counters["samples"], counters["elapsed_s"]
    if step:
        unet_mean.updates = text_mean.updates = counters["updates"]
        for group, fresh in zip(optimizer.param_groups, groups, strict=True):
            group["full_rate"] = fresh["full_rate"]  # a resumed run may go on at another rate
        log.info("going on at step %d, %.1f minutes", step, elapsed_s / 60)

    sizes = (CELLS, *LARGER) if larger_exist(run) else (CELLS,)
    latents = {cells: load_latents(run, cells) for cells in sizes}
    weights = {cells: sample_weights(latents[cells], training) for cells in sizes}
    difficulty = Difficulty(latents.values())
    choose: dict[int, NDArray[np.float64]] = {}
    tokenizer = load_tokenizer(run)
    alphas_bar = scaled_linear_alphas_bar()
    likely = {  # by gamma: how often each timestep is drawn, (1000,)
        gamma: min_snr_weight(alphas_bar, gamma).clamp(min=training.least_density)
        for gamma in (training.snr_gamma, training.fine_snr_gamma)
    }
    likely_there = {gamma: density.to(device) for gamma, density in likely.items()}
    alphas_bar = alphas_bar.to(device)
    trained = [p for network in (unet, text) for p in network.parameters() if p.requires_grad]

    def save() -> None:
        keep(folder, parts, step=step, samples=samples, elapsed_s=elapsed_s, updates=unet_mean.updates)
        unet_mean.module.save_pretrained(folder / "unet")
        text_mean.module.save_pretrained(folder / "text_encoder")

    recent: list[tuple[float, float]] = []  # (weighted loss, mse) since the last line of the log
    last = {"line": elapsed_s, "save": elapsed_s, "sheet": elapsed_s}
    samples_at_line = samples
    now = time.monotonic()
    done = training.plan.done(elapsed_s)
    while not done:
        rng, generator = generators(training.seed, step + team.rank)
        if not choose or step // team.size % 500 == 0:
            choose = {c: np.cumsum(w * difficulty.of(latents[c])) for c, w in weights.items()}
        cells = int(rng.choice(sizes[1:])) if len(sizes) > 1 and rng.random() < training.larger else CELLS
        count = max(1, training.batch_size * CELLS**2 // cells**2)
        known = latents[cells]
        picked = np.searchsorted(choose[cells], rng.random(count) * choose[cells][-1]).clip(max=len(known.z) - 1)
        said = [caption(known.drawings[i], known.backgrounds[i], rng, training.chinese) for i in picked]
        said = drop_captions(said, training.dropout, generator)
        x0 = known.z[torch.from_numpy(picked)].to(device)  # (B, 4, cells, cells)
        gamma = training.fine_snr_gamma if training.plan.falls(elapsed_s) else training.snr_gamma
        t = stratified_timesteps(count, generator, density=likely[gamma]).to(device)
        epsilon = torch.randn(x0.shape, generator=generator).to(device)

        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * training.plan.factor(step, elapsed_s)
        with mixed_precision(device):
            context = encode_prompts(text, tokenizer, said)

            def predict(x: Tensor, t: Tensor, context: Tensor = context) -> Tensor:
                return unet(x, t, context).sample

            loss = training_loss(predict, x0, t, epsilon, alphas_bar, gamma, likely_there[gamma])
        optimizer.zero_grad(set_to_none=True)
        loss.weighted.backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        if cells == CELLS:
            heard = [k for k, words in enumerate(said) if words]
            difficulty.see([known.drawings[i] for i in picked[heard]], t[heard], loss.mse[heard])

        step, samples = step + team.size, samples + count * team.size
        now, before = time.monotonic(), now
        elapsed_s += now - before
        recent.append((loss.weighted.item(), loss.mse.mean().item()))
        if step // team.size % training.meet_every:
            continue
        team.average(trained)
        elapsed_s = team.leader_says(elapsed_s)
        done = training.plan.done(elapsed_s)
        if not team.leads:
            continue
        unet_mean.update(unet)
        text_mean.update(text)
        if elapsed_s - last["line"] > 60:
            weighted, mse = np.mean(recent, axis=0)
            speed = (samples - samples_at_line) / (elapsed_s - last["line"])
            line = f"{elapsed_s / 60:.1f} min, step {step}, {samples} samples ({speed:.1f}/s)"
            line += f", loss {weighted:.4f}, mse {mse:.4f}, rate {optimizer.param_groups[0]['lr']:.2e}"
            log.info(line)
            with open(folder / "log.txt", "a") as stream:
                stream.write(line + "\n")
            recent, samples_at_line, last["line"] = [], samples, elapsed_s
        if elapsed_s - last["save"] > training.save_every_s:
            last["save"] = elapsed_s
            save()
        if elapsed_s - last["sheet"] > training.sheet_every_s:
            last["sheet"] = elapsed_s
            save_sheet(run, unet_mean.module, text_mean.module, PROMPTS, folder / f"samples-{step:06d}.png")
    if team.leads:
        save()


class Difficulty:
    """How badly each drawing is drawn so far: a running mean of its loss over what is usual at that timestep.

    Every process has its own, and a resumed run begins anew: a thousand steps tell it again.
    """

    PARTS = 20  # of the timesteps; what is usual is known for each
    RANGE = (0.5, 3.0)  # times as often as the others

    def __init__(self, latents: Iterable[Latents]) -> None:
        names = dict.fromkeys(_name(drawing) for part in latents for drawing in part.drawings)
        self.number = {name: k for k, name in enumerate(names)}
        self.ratio = np.ones(len(names))
        self.usual = np.zeros(self.PARTS)
        self.seen = np.zeros(self.PARTS)

    def see(self, drawings: Sequence[Drawing], t: Tensor, mse: Tensor) -> None:
        """t: (B,) timesteps, 0..999; mse: (B,)"""
        for drawing, part, miss in zip(drawings, (t * self.PARTS // 1000).tolist(), mse.tolist(), strict=True):
            self.seen[part] += 1
            self.usual[part] += (miss - self.usual[part]) / min(self.seen[part], 300)
            number = self.number[_name(drawing)]
            self.ratio[number] += 0.1 * (miss / self.usual[part] - self.ratio[number])

    def of(self, latents: Latents) -> NDArray[np.float64]:
        """(N,), how many times as often as the average each latent shall be drawn."""
        numbers = [self.number[_name(drawing)] for drawing in latents.drawings]
        return np.asarray(self.ratio.clip(*self.RANGE)[numbers])


def _name(drawing: Drawing) -> tuple[str, str]:
    return drawing.style, drawing.concept.key


def sample_weights(latents: Latents, training: UNetTraining) -> NDArray[np.float64]:
    """(N,), probability of each latent in training."""
    is_default = np.array([drawing.style == DEFAULT_STYLE for drawing in latents.drawings])
    weights = np.array([1.0 if background == WHITE else training.coloured for background in latents.backgrounds])
    if is_default.all():
        return weights / weights.sum()
    weights[is_default] *= training.default_style / weights[is_default].sum()
    weights[~is_default] *= (1 - training.default_style) / weights[~is_default].sum()
    return weights
