"""How far our pictures are from A1111's: every measured case, by feature.
`python bench/parity.py [--only REGEX] [--details]`

The measured data is in the folder named by EASEL_GOLDEN, else ../shared/golden beside the repository. One process, one
thread, fp32 on the CPU, as the source was measured.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from modules.diffusion.names import SAMPLER_INFOS  # noqa: E402
from modules.families.family import UNTOLD  # noqa: E402
from modules.families.networks.embeddings import EmbeddingStore  # noqa: E402
from modules.families.sd1 import SD1Family  # noqa: E402
from modules.generation import engine  # noqa: E402
from modules.generation.plan import plan  # noqa: E402
from modules.generation.shelf import Shelf  # noqa: E402
from modules.library.checkpoints import CheckpointLibrary  # noqa: E402
from modules.library.header import read_header  # noqa: E402
from modules.library.networks import NetworkLibrary  # noqa: E402
from modules.postprocess.upscale import PLAIN_UPSCALERS, to_size, upscale  # noqa: E402
from modules.runtime.device import Placement  # noqa: E402
from modules.settings.schema import Settings  # noqa: E402
from tests.golden import GOLDEN, golden_cases  # noqa: E402
from tests.golden_requests import asked  # noqa: E402

# Features by the names of their cases; the first that fits counts.
FEATURES: dict[str, str] = {
    "Samplers": r"sampler_|ddim_quad|uni_pc",
    "Samplers × schedules": r"sched__|discard_pen|rho",
    "Few and many steps": r"steps\d",
    "Eta, churn, noise": r"eta_|s_churn|s_noise|quantize",
    "Prompt editing, alternation": r"edit|alternate",
    "AND, comments, styles": r"and_|comments|styles",
    "Emphasis, clip skip": r"emph|clip_skip",
    "Long and empty prompts, padding": r"neg_|pos_long|both_empty",
    "CFG scale, NGMS, skip early": r"cfg_|s_min|skip_early",
    "Seeds, sources of noise, ENSD": r"rng|seed|subseed|ensd",
    "Sizes, batches": r"size_|batch2|do_not_save",
    "LoRA and LyCORIS": r"lora|net_",
    "Textual inversion": r"ti_",
    "Hypernetworks": r"hyper_",
    "Tiling, token merging, refiner": r"tiling|tome|refiner",
    "Hires fix": r"hires",
    "img2img": r"i2i",
    "Inpainting": r"inpaint",
    "The same again, infotext": r"base|after_|no_infotext",
}
# What our infotexts say and A1111's do not, on purpose: both change the picture.
ONLY_OURS = {
    "s_churn": ", Sigma churn: 5.0, Sigma tmin: 0.05, Sigma tmax: 10.0, Sigma noise: 1.01",
    "s_noise_sde": ", Sigma noise: 1.02",
    "hyper_0.3": ', Hypernet hashes: "tinyhyper: d8973098dec4"',
    "hyper_1": ', Hypernet hashes: "tinyhyper: d8973098dec4"',
}
ALIASES = frozenset(alias for info in SAMPLER_INFOS for alias in info.aliases)
LARGEST_ERROR = 1e-3  # relative, of a latent
LOWEST_PSNR = 45.0  # dB


@dataclass(frozen=True)
class Measured:
    """One case beside what A1111 made of it."""

    latent_errors: tuple[float, ...]  # relative L2, of each pass
    psnrs: tuple[float, ...]  # dB, of each picture
    infotexts: tuple[str, ...]  # without version, and without what only ours have
    wanted_infotexts: tuple[str, ...]

    @property
    def is_met(self) -> bool:
        return (
            max(self.latent_errors) <= LARGEST_ERROR
            and min(self.psnrs, default=LOWEST_PSNR) >= LOWEST_PSNR
            and self.infotexts == self.wanted_infotexts
        )


def why_not(case: dict[str, Any]) -> str | None:
    """Why a case has nothing to compare with, or None."""
    if case["status"] != 200:
        return f"A1111 itself failed: {json.loads(case['error']).get('errors', case['error'])}"
    if case["request"].get("sampler_name") in ALIASES:
        return "A1111 takes the alias of a sampler for an unknown one, and DPM++ 2M instead; we take the sampler"
    return None


def stand(golden: Path, cache: Path) -> Shelf:
    """The measured model and its networks."""
    models = golden / "models"
    library = CheckpointLibrary([models], cache / "models.db")
    checkpoint = library.hashed(library.find("tiny-sd1"))
    placement = Placement(torch.device("cpu"), torch.float32, torch.float32, torch.float32, channels_last=False)
    header = read_header(checkpoint.path)
    model = SD1Family().load(checkpoint.path, header, checkpoint.config, placement, UNTOLD)
    folders = {"lora": [models], "embedding": [models], "hypernetwork": [models]}
    networks = NetworkLibrary(folders, cache / "networks.db")
    return replace(
        Shelf.of(model, checkpoint),
        upscaler=lambda name, settings: to_size(PLAIN_UPSCALERS[name]),
        enlarger=lambda name, settings: lambda picture, scale: upscale(picture, scale, PLAIN_UPSCALERS[name]),
        networks=networks,
        embeddings=EmbeddingStore(networks),
    )


def measure(name: str, case: dict[str, Any], golden: Path, shelf: Shelf) -> Measured:
    wanted = asked(case["request"], golden)
    latents: list[torch.Tensor] = []
    denoise = engine.denoise

    def recorded(*args: Any) -> torch.Tensor:
        latents.append(denoise(*args))
        return latents[-1]

    settings = Settings().with_overrides(wanted.settings)
    with patch.object(engine, "denoise", recorded):
        shelf = replace(shelf, picture=wanted.picture)
        images = list(engine.generate(plan(wanted.request), shelf, settings, lambda progress: None))
    measured = np.load(golden / "cases" / f"{name}.npz")
    passes = [key for key in measured.files if key.startswith("pass_latent")]
    theirs = [measured[f"pass_latent_{number}"] for number in range(len(passes))]
    grids = max(len(case["infotexts"]) - len(images), 0)  # come first
    paths = sorted((golden / "cases").glob(f"{name}.png")) + sorted((golden / "cases").glob(f"{name}_[0-9].png"))
    pictures = [image.image for image in images] + [other for image in images for _, other in image.beside]
    only_ours = ONLY_OURS.get(name, "")
    return Measured(
        # s_churn was recorded with another run before it
        tuple(error(a.numpy(), b) for a, b in zip(latents, theirs[len(theirs) - len(latents) :], strict=True)),
        tuple(psnr(a, Image.open(b)) for a, b in zip(pictures, paths[grids:], strict=bool(paths))),
        tuple(without_version(image.infotext).replace(only_ours, "") for image in images),
        tuple(without_version(text) for text in case["infotexts"][grids:]),
    )


def error(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """dB, of 8-bit values; at most 148, for equal pictures."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other))
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-10)))


def without_version(infotext: str) -> str:
    return infotext.split(", Version:")[0]


def feature_of(name: str) -> str:
    return next((feature for feature, names in FEATURES.items() if re.match(names, name)), "Other")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose names fit")
    parser.add_argument("--details", action="store_true", help="a line for each case")
    arguments = parser.parse_args()
    cases = {name: case for name, case in golden_cases().items() if re.search(arguments.only, name)}
    if not cases:
        print(f"no cases in {GOLDEN}; set EASEL_GOLDEN to the folder of the measured data")
        return 1
    torch.set_num_threads(1)
    began = time.monotonic()
    results: dict[str, Measured] = {}
    left: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        shelf = stand(GOLDEN, Path(cache))
        for name, case in cases.items():
            if reason := why_not(case):
                left[name] = reason
                continue
            results[name] = measure(name, case, GOLDEN, shelf)
            if arguments.details:
                print(f"{name:45}{line(results[name])}", flush=True)
    report(results, left)
    print(f"\n{len(results)} cases, {time.monotonic() - began:.0f} s")
    return 0 if all(result.is_met for result in results.values()) else 1


def line(result: Measured) -> str:
    psnrs = f"{min(result.psnrs):6.1f} dB" if result.psnrs else "        -"
    equal = "same infotext" if result.infotexts == result.wanted_infotexts else "OTHER INFOTEXT"
    return f"{max(result.latent_errors):.1e} {psnrs}  {equal}"


def report(results: dict[str, Measured], left: dict[str, str]) -> None:
    """Markdown, as docs/parity.md has it."""
    print("| feature | cases | largest relative error of a latent | lowest PSNR | infotexts |\n|---|---|---|---|---|")
    for feature in [*FEATURES, "Other"]:
        group = {name: result for name, result in results.items() if feature_of(name) == feature}
        if group:
            print(f"| {feature} | {len(group)} | {row(group)} |")
    for name, result in results.items():
        if not result.is_met:
            print(f"\nNOT MET: {name}: {line(result)}")
            for ours, theirs in zip(result.infotexts, result.wanted_infotexts, strict=False):
                if ours != theirs:
                    print(f"  ours   {ours!r}\n  theirs {theirs!r}")
    for name, reason in left.items():
        print(f"\nnot compared: {name}: {reason}")


def row(group: dict[str, Measured]) -> str:
    worst = max(group, key=lambda name: max(group[name].latent_errors))
    psnrs = [value for result in group.values() for value in result.psnrs]
    equal = sum(result.infotexts == result.wanted_infotexts for result in group.values())
    lowest = f"{min(psnrs):.1f} dB" if psnrs else "–"
    return (
        f"{max(group[worst].latent_errors):.1e} ({worst}) | {lowest} | "
        f"{'all equal' if equal == len(group) else f'{equal} of {len(group)} equal'}"
    )


if __name__ == "__main__":
    sys.exit(main())
