"""Stage polish: sharper pictures from latents that stay as they are, so that the UNet need not learn anew.

The decoder alone learns on: to paint the pictures from the cached latents, which are what the encoder finds, and from
what the UNet makes of them when it draws. A small UNet leaves specks and smears in its latents, and the decoder can
learn how these look and what belongs there. The run lives in `polish/`, resumable like the others; `polish/vae` holds
the averaged weights.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from modules.training.objective import EMA, q_sample, scaled_linear_alphas_bar
from tools.starter.artwork import load_artwork
from tools.starter.captions import caption
from tools.starter.fidelity import examples, fidelity, pictures_of
from tools.starter.latents import load_index, load_latents
from tools.starter.networks import SCALE, mixed_precision, use_fast_attention
from tools.starter.norms import use_fast_norms
from tools.starter.runstate import Plan, generators, keep, resumed
from tools.starter.sampling import encode_prompts
from tools.starter.text import load_tokenizer
from tools.starter.vae import picture_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Polishing:
    plan: Plan
    seed: int
    batch_size: int = 4
    squared: float = 4.0  # weight of the squared error beside picture_loss, which weighs it lightly
    redrawn: float = 0.3  # part of the steps on latents that the UNet has drawn again, 0-1
    noisy: float = 0.25  # part of the steps on latents with a little noise; the others are on the latents as they are
    noise: float = 0.08  # its deviation
    redraw_from: tuple[int, int] = (50, 400)  # timesteps to which these are noised: later ones show another picture
    redraw_steps: int = 4
    redraw_cfg: float = 4.0
    save_every_s: float = 180


@dataclass(frozen=True)
class Painter:
    """Unfinished latents become finished ones again, as in drawing: DDIM with guidance, in few steps."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    tokenizer: CLIPTokenizer
    alphas_bar: Tensor

    @torch.no_grad()
    def redraw(self, z: Tensor, noise: Tensor, captions: Sequence[str], start: int, steps: int, cfg: float) -> Tensor:
        """z, noise: (B, 4, h, w) -> what the UNet makes of z, noised to timestep `start`."""
        count = len(z)
        context = encode_prompts(self.text, self.tokenizer, [""] * count + list(captions))
        times = [round(start * (steps - k) / steps) for k in range(steps + 1)]
        x = q_sample(z, torch.full((count,), start, device=z.device), noise, self.alphas_bar)
        for t, t_next in zip(times, times[1:], strict=False):
            a, a_next = self.alphas_bar[t], self.alphas_bar[t_next]
            both = self.unet(torch.cat([x, x]), torch.full((2 * count,), t, device=z.device), context).sample
            uncond, cond = both.float().chunk(2)
            epsilon = uncond + cfg * (cond - uncond)
            x0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
            x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * epsilon
        return x0


def load_painter(run: Path, device: torch.device) -> Painter:
    unet = UNet2DConditionModel.from_pretrained(run / "unet" / "unet").to(device).eval()
    text = CLIPTextModel.from_pretrained(run / "unet" / "text_encoder").to(device).eval()
    use_fast_attention(unet, text, device)
    return Painter(unet, text, load_tokenizer(run), scaled_linear_alphas_bar().to(device))


def polish_vae(run: Path, polishing: Polishing, device: torch.device) -> None:
    folder = run / "polish"
    folder.mkdir(exist_ok=True)
    artwork, _ = load_artwork(run)
    latents = load_latents(run)
    z, index = latents.z, load_index(run)
    checked = examples(run, each=12)  # also trained on
    painter = load_painter(run, device)

    vae = AutoencoderKL.from_pretrained(run / "latents" / "vae")
    vae.to(device, memory_format=torch.channels_last).train()
    use_fast_norms(vae, device)
    learning = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=polishing.plan.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    mean = EMA(vae, 0.995)
    parts = {"vae": vae, "mean": mean.module, "optimizer": optimizer}
    counters = resumed(folder, parts, step=0, elapsed_s=0.0, updates=0)
    step, elapsed_s, mean.updates = counters["step"], counters["elapsed_s"], counters["updates"]

    def save() -> None:
        keep(folder, parts, step=step, elapsed_s=elapsed_s, updates=mean.updates)
        mean.module.save_pretrained(folder / "vae")

    recent: list[float] = []  # losses since the last line of the log
    last = {"line": elapsed_s, "save": elapsed_s}
    now = time.monotonic()
    while not polishing.plan.done(elapsed_s):
        rng, generator = generators(polishing.seed, step)
        picked = rng.choice(len(index), polishing.batch_size, replace=False)
        x = pictures_of(artwork, [index[k] for k in picked], device)  # (B, 3, 128, 128)
        wanted = z[torch.from_numpy(picked)].to(device)  # (B, 4, 16, 16)
        for group in optimizer.param_groups:
            group["lr"] = polishing.plan.rate * polishing.plan.factor(step, elapsed_s)
        noise = torch.randn(wanted.shape, generator=generator).to(device)
        kind = rng.random()
        with mixed_precision(device):
            if kind < polishing.redrawn:
                said = [caption(latents.drawings[k], latents.backgrounds[k], rng) for k in picked]
                start = int(rng.integers(*polishing.redraw_from))
                given = painter.redraw(wanted, noise, said, start, polishing.redraw_steps, polishing.redraw_cfg)
            else:
                given = wanted + (polishing.noise * noise if kind < polishing.redrawn + polishing.noisy else 0)
            y = vae.decode(given / SCALE).sample.float()
        loss = picture_loss(x, y) + polishing.squared * (x - y).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        mean.update(vae)
        step += 1
        recent.append(loss.item())
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if elapsed_s - last["line"] > 120:
            last["line"] = elapsed_s
            line = f"{elapsed_s / 60:.1f} min, step {step}, loss {np.mean(recent):.4f}"
            with mixed_precision(device):
                for name, numbers in checked.items():
                    line += f", {name} {fidelity(run, mean.module, numbers, device):.2f} dB"
            recent = []
            log.info(line)
            with open(folder / "log.txt", "a") as stream:
                stream.write(line + "\n")
        if elapsed_s - last["save"] > polishing.save_every_s:
            last["save"] = elapsed_s
            save()
    save()
