"""Names what the starter draws, by a judge that has never seen it.

python tools/starter/judge.py [--checkpoint FILE] [--chinese] [--limit N] [--seeds N]

Draws every prompt of prompts.txt with four seeds (DPM++ 2M, 20 steps, CFG 5, 128 x 128) and lets `classifier.py` say
which of 1,420 concepts each picture shows. Prints the part named right (top-1, top-5), beside it the judge's own on the
artwork of a style that it has not seen; `run/judge/*.tsv` has the verdict on each prompt.
"""

import argparse
import logging
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402 – the path must be set first
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from tools.starter.artwork import load_artwork  # noqa: E402
from tools.starter.captions import DEFAULT_STYLE, WHITE  # noqa: E402
from tools.starter.classifier import Judge, as_seen, hits, indices, rank, train_judge  # noqa: E402
from tools.starter.drawing import draw_all, load  # noqa: E402
from tools.starter.latents import composite  # noqa: E402

log = logging.getLogger(__name__)

PROMPTS_FILE = HERE / "prompts.txt"


@dataclass(frozen=True)
class Verdict:
    prompt: str
    concept: str
    seen: list[str]  # what the judge names each picture
    top1: float  # 0-1
    top5: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--run", type=Path, default=HERE / "run")
    option("--checkpoint", type=Path, default=HERE.parents[1] / "models" / "Stable-diffusion" / "starter.safetensors")
    option("--minutes", type=float, default=12, help="of training the judge, once")
    option("--chinese", action="store_true", help="ask for the same things by their Chinese names")
    option("--limit", type=int, help="only the first prompts")
    option("--seeds", type=int, default=4, help="pictures of each prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = options.run / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    judge = train_judge(folder, options.minutes)
    log.info(
        "the judge itself, on a style that it has not seen: top-1 %.1f %%, top-5 %.1f %%", *percent(judge.held_out)
    )
    asked = load_prompts(PROMPTS_FILE)[: options.limit]
    own = on_artwork(judge, folder, {concept for _, concept in asked})
    log.info("and on the artwork of what is asked for here, which it was taught: top-1 %.1f %%, top-5 %.1f %%", *own)
    if options.chinese:
        _, drawings = load_artwork(folder)
        chinese = {drawing.concept.name: drawing.concept.name_zh for drawing in drawings}
        asked = [(chinese[concept], concept) for _, concept in asked]
    prompts = [prompt for prompt, _ in asked for _ in range(options.seeds)]
    pictures = draw_all(load(options.checkpoint), prompts, list(range(options.seeds)) * len(asked))
    verdicts = judged(judge, pictures, asked)
    file = folder / f"{options.checkpoint.stem}{'-chinese' if options.chinese else ''}.tsv"
    lines = [f"{v.prompt}\t{v.concept}\t{v.top1:.2f}\t{v.top5:.2f}\t{'; '.join(v.seen)}" for v in verdicts]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    mean = float(np.mean([v.top1 for v in verdicts])), float(np.mean([v.top5 for v in verdicts]))
    log.info("%d pictures of %d prompts: top-1 %.1f %%, top-5 %.1f %%", len(pictures), len(asked), *percent(mean))


def load_prompts(file: Path) -> list[tuple[str, str]]:
    """Prompt, and the concept that it asks for; one pair a line, parted by a tab."""
    pairs = (line.split("\t") for line in file.read_text("utf-8").splitlines())
    return [(prompt, concept) for prompt, concept in pairs]


def judged(judge: Judge, pictures: NDArray[np.uint8], asked: Sequence[tuple[str, str]]) -> list[Verdict]:
    """`pictures`: (prompts x seeds, H, W, 3), the seeds of one prompt together."""
    best = rank(judge.network, as_seen(pictures))[:, :5].reshape(len(asked), -1, 5)  # (prompts, seeds, 5)
    wanted = indices(judge, [concept for _, concept in asked])[:, None, None]
    right = best == wanted
    return [
        Verdict(
            prompt,
            concept,
            [judge.names[int(number)] for number in best[k, :, 0]],
            right[k, :, 0].float().mean().item(),
            right[k].any(-1).float().mean().item(),
        )
        for k, (prompt, concept) in enumerate(asked)
    ]


def on_artwork(judge: Judge, folder: Path, concepts: Set[str]) -> tuple[float, float]:
    """Percent of these concepts' drawings, in the default style, named right: what a perfect starter would get."""
    artwork, drawings = load_artwork(folder)
    numbers = [k for k, d in enumerate(drawings) if d.style == DEFAULT_STYLE and d.concept.name in concepts]
    pictures = np.stack([(composite(artwork[k], WHITE) + 1) * 127.5 for k in numbers]).astype(np.uint8)
    label = indices(judge, [drawings[k].concept.name for k in numbers])
    return percent(hits(judge.network, as_seen(pictures), label))


def percent(parts: tuple[float, float]) -> tuple[float, float]:
    return 100 * parts[0], 100 * parts[1]


if __name__ == "__main__":
    main()
