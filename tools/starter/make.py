"""Makes the starter checkpoint from nothing.

python tools/starter/make.py [STAGE ...] [options]

Stages, in order: data, vae, text, chinese, latents, unet, polish, export, lora, inversion, sheet. Without a stage: all.
Each leaves its results in the run folder, so that a stage can be made again alone; a training stage that was killed
goes on where it last saved, and one that is done goes on when it gets more minutes.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Before torch is imported: waiting threads must sleep, freed memory stay with the process (17 x less system time).
ALLOCATOR = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
STAGES = ("data", "vae", "text", "chinese", "latents", "unet", "polish", "export", "lora", "inversion", "sheet")


def main() -> None:
    options = parse()
    prepare_process(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for noisy in ("httpx", "transformers", "diffusers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    options.run.mkdir(parents=True, exist_ok=True)
    for stage in options.stages or STAGES:
        logging.info("stage %s", stage)
        run_stage(stage, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    option("--run", type=Path, default=HERE / "run", help="folder for everything that is made on the way")
    option("--models", type=Path, default=ROOT / "models" / "Stable-diffusion", help="folder of the export")
    option("--warm", type=Path, help="weights to start from: an exported checkpoint, or a folder in diffusers' layout")
    option("--styles", default="noto,3d", help="first the one that needs no word")
    option("--concepts", choices=("listed", "all"), default="listed", help="listed: those in concepts.txt")
    option("--coloured", type=int, default=2, help="pictures on a coloured background for each on white")
    option("--vae-minutes", type=float, default=60)
    option("--text-minutes", type=float, default=4)
    option("--chinese-minutes", type=float, default=8)
    option("--unet-minutes", type=float, default=120)
    option("--polish-minutes", type=float, default=20)
    option("--lora-minutes", type=float, default=6)
    option("--inversion-minutes", type=float, default=6)
    option("--batch", type=int, default=16, help="of the UNet's training")
    option("--rate", type=float, default=1e-3, help="learning rate of the UNet")
    option("--larger", type=float, default=0.15, help="part of the UNet's steps on pictures of 192 and 256 pixels, 0-1")
    option("--seed", type=int, default=0)
    option("--sheet", type=Path, default=ROOT / "docs" / "images" / "starter.webp", help="file of the contact sheet")
    option(
        "--sheet-prompts", nargs="+", metavar="PROMPT", help="instead of the first 60 of prompts.txt that it was taught"
    )
    option("--sheet-seed", type=int, default=0)
    option("--sheet-cfg", type=float, default=5.0)
    option("--device", default="auto", help="cpu, cuda or auto")
    option("--workers", type=int, default=1, help="processes that train the UNet; on a CPU as many as there are cores")
    option("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return options


def prepare_process(options: argparse.Namespace) -> None:
    """Environment and import path; starts this process again when the environment was not right from its start."""
    wanted = {**ALLOCATOR, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sys.path.insert(0, str(ROOT))
    if options.device != "cuda" and hasattr(os, "nice"):
        os.nice(max(0, 19 - os.nice(0)))  # hours on a CPU must not be felt


def run_stage(stage: str, options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(options.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if options.device == "auto" else options.device)
    run, seed, warm = options.run, options.seed, options.warm
    exported = bool(warm and warm.is_file())
    if exported:
        from tools.starter.export import load_exported

        checkpoint, warm = warm, run / "warm"
        for name, network in zip(("unet", "vae", "text_encoder"), load_exported(checkpoint), strict=True):
            network.save_pretrained(warm / name)
    match stage:
        case "data":
            from tools.starter.artwork import make_artwork

            make_artwork(run, options.styles.split(","), options.concepts)
        case "vae":
            from tools.starter.networks import VaeSizes, make_vae
            from tools.starter.runstate import Plan
            from tools.starter.vae import VaeTraining, train_vae

            if not warm:
                torch.manual_seed(seed)
                plan = Plan(options.vae_minutes, rate=1.5e-3, warm_up=50, tail=1.0, floor=0.03)
                train_vae(run, VaeTraining(plan, seed), make_vae(VaeSizes()), device)
        case "text":
            from tools.starter.networks import TextSizes
            from tools.starter.runstate import Plan
            from tools.starter.text import train_text

            if not warm:
                plan = Plan(options.text_minutes, rate=1e-3, warm_up=30, tail=1.0)
                train_text(run, TextSizes(), plan, seed, device)
        case "chinese":
            from transformers import CLIPTextModel

            from tools.starter.chinese import teach_chinese
            from tools.starter.runstate import Plan

            text = CLIPTextModel.from_pretrained(warm / "text_encoder" if warm else run / "text")
            plan = Plan(options.chinese_minutes, rate=1e-3, tail=0.5)
            teach_chinese(run, options.styles.split(","), text, plan, seed, device)
        case "latents":
            from tools.starter.latents import make_larger_latents, make_latents

            make_latents(run, warm / "vae" if warm else run / "vae", options.coloured, seed, device, exported)
            make_larger_latents(run, device)
        case "unet":
            from functools import partial

            from tools.starter.runstate import Plan
            from tools.starter.team import train_together
            from tools.starter.unet import UNetTraining, begin_unet

            plan = Plan(options.unet_minutes, options.rate, tail=0.25)
            training = UNetTraining(plan, options.batch, seed, larger=options.larger)
            train_together(options.workers, partial(begin_unet, run, warm, training, device))
        case "polish":
            from tools.starter.polish import Polishing, polish_vae
            from tools.starter.runstate import Plan

            plan = Plan(options.polish_minutes, rate=5e-4)
            polish_vae(run, Polishing(plan, seed), device)
        case "export":
            from tools.starter.export import export

            export(run, options.models)
        case "lora":
            from tools.starter.extras import make_lora
            from tools.starter.runstate import Plan

            plan = Plan(options.lora_minutes, rate=2e-3, warm_up=20, tail=0.6)
            checkpoint = options.models / "starter.safetensors"
            make_lora(run, checkpoint, options.models.parent / "Lora", plan, seed, device)
        case "inversion":
            from tools.starter.extras import make_inversion
            from tools.starter.runstate import Plan

            plan = Plan(options.inversion_minutes, rate=1e-3, warm_up=20, tail=0.6)
            checkpoint = options.models / "starter.safetensors"
            make_inversion(run, checkpoint, options.models.parent / "embeddings", plan, seed, device)
        case "sheet":
            from tools.starter.evaluate import prompts_of, report

            checkpoint = options.models / "starter.safetensors"
            prompts = options.sheet_prompts or prompts_of(checkpoint)
            report(checkpoint, run, prompts, options.sheet, options.sheet_seed, options.sheet_cfg)


if __name__ == "__main__":
    main()
