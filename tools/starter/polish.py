"""Stage polish: a sharper VAE around latents that stay as they are, so that the UNet need not learn anew.

The decoder learns to paint the pictures from the cached latents, the encoder to find these latents. The run lives in
`polish/`, resumable like the others; `polish/vae` holds the averaged weights.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from modules.training.objective import EMA
from tools.starter.artwork import load_artwork
from tools.starter.latents import composite
from tools.starter.networks import SCALE
from tools.starter.runstate import Plan, generators, load_state, save_state
from tools.starter.vae import as_images, peak_signal_to_noise, picture_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Polishing:
    plan: Plan
    seed: int
    batch_size: int = 4
    noise: float = 0.12  # deviation of what is added to the latents: the UNet's are not perfect either
    encoder_every: int = 4  # steps; the encoder has less to learn
    save_every_s: float = 180


def polish_vae(run: Path, polishing: Polishing, device: torch.device) -> None:
    folder = run / "polish"
    folder.mkdir(exist_ok=True)
    artwork, _ = load_artwork(run)
    z = torch.from_numpy(np.load(run / "latents" / "z.npy")).float()  # (N, 4, 16, 16)
    index: list[tuple[int, str]] = json.loads((run / "latents" / "index.json").read_text())
    checked = np.linspace(0, len(index) - 1, 24).astype(int)  # spread over styles and backgrounds; also trained on

    vae = AutoencoderKL.from_pretrained(run / "latents" / "vae").to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=polishing.plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    mean = EMA(vae, 0.995)
    parts = {"vae": vae, "mean": mean.module, "optimizer": optimizer}
    step, elapsed_s = 0, 0.0
    state = load_state(folder / "state.pt")
    if state:
        step, elapsed_s, mean.updates = state["step"], state["elapsed_s"], state["updates"]
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def pictures(numbers: np.ndarray) -> Tensor:
        return as_images([composite(artwork[index[k][0]], index[k][1]) for k in numbers], device)

    def save() -> None:
        counters = {"step": step, "elapsed_s": elapsed_s, "updates": mean.updates}
        save_state({**counters, **{name: part.state_dict() for name, part in parts.items()}}, folder / "state.pt")
        mean.module.save_pretrained(folder / "vae")

    last = {"line": elapsed_s, "save": elapsed_s}
    now = time.monotonic()
    while not polishing.plan.done(elapsed_s):
        rng, generator = generators(polishing.seed, step)
        picked = rng.choice(len(index), polishing.batch_size, replace=False)
        x = pictures(picked)  # (B, 3, 128, 128)
        wanted = z[torch.from_numpy(picked)].to(device)  # (B, 4, 16, 16)
        for group in optimizer.param_groups:
            group["lr"] = polishing.plan.rate * polishing.plan.factor(step, elapsed_s)
        noise = polishing.noise * torch.randn(wanted.shape, generator=generator).to(device)
        finding = step % polishing.encoder_every == 0
        with torch.autocast(device.type, torch.bfloat16):
            y = vae.decode((wanted + noise) / SCALE).sample.float()
            loss = picture_loss(x, y)
            if finding:
                found = vae.encode(x).latent_dist.mean.float() * SCALE
                loss = loss + (found - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        mean.update(vae)
        step += 1
        now, before = time.monotonic(), now
        elapsed_s += now - before
        if elapsed_s - last["line"] > 60:
            last["line"] = elapsed_s
            with torch.no_grad():
                x, wanted = pictures(checked), z[torch.from_numpy(checked)].to(device)
                painted = peak_signal_to_noise(mean.module.decode(wanted / SCALE).sample, x)
                found = mean.module.encode(x).latent_dist.mean * SCALE
                both = peak_signal_to_noise(mean.module.decode(found / SCALE).sample, x)
            miss = (found - wanted).square().mean().sqrt().item()
            line = f"{elapsed_s / 60:.1f} min, step {step}, loss {loss.item():.4f}, decoder {painted:.2f} dB"
            line += f", both {both:.2f} dB, latents off by {miss:.3f}"
            log.info(line)
            with open(folder / "log.txt", "a") as stream:
                stream.write(line + "\n")
        if elapsed_s - last["save"] > polishing.save_every_s:
            last["save"] = elapsed_s
            save()
    save()
