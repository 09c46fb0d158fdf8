"""The judge of what the starter draws: its prompts, what it looks at, how it counts. (Its training takes minutes.)"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

from tools.starter.artwork import CONCEPTS_FILE
from tools.starter.captions import load_synonyms
from tools.starter.classifier import SEEN, Features, Judge, as_seen, hits, make_network
from tools.starter.evaluate import prompts_of
from tools.starter.export import additions
from tools.starter.judge import PROMPTS_FILE, judged, load_prompts
from tools.starter.sources import STYLES


class ByColour(nn.Module):
    """Three concepts, told apart by which of red, green and blue is the strongest, and three that never are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), torch.full((len(x), 3), -2.0)], 1)


def test_prompts_are_a_hundred_of_listed_concepts_twenty_with_a_style_or_background() -> None:
    asked = load_prompts(PROMPTS_FILE)
    listed = set(CONCEPTS_FILE.read_text("utf-8").splitlines())
    assert len(asked) == len({prompt for prompt, _ in asked}) == 100
    assert all(concept in listed for _, concept in asked)
    assert sum(prompt.endswith(("style", "background", "3d render")) for prompt, _ in asked) == 20
    assert {"red apple", "pizza", "sailboat", "house with garden", "cat face", "rocket"} <= {p for p, _ in asked}


def test_the_sheet_shows_what_the_checkpoint_was_taught_and_something_of_one_that_knows_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "starter.safetensors"
    words = checkpoint.with_suffix(".words.txt")
    words.write_text("pizza\nrocket\n", "utf-8")
    of_words = {prompt for prompt, concept in load_prompts(PROMPTS_FILE) if concept in ("pizza", "rocket")}
    assert set(prompts_of(checkpoint)) == of_words and of_words >= {"pizza", "rocket"}
    words.write_text("", "utf-8")
    assert prompts_of(checkpoint, most=7) == [prompt for prompt, _ in load_prompts(PROMPTS_FILE)][:7]


def test_synonyms_are_of_listed_concepts() -> None:
    assert set(load_synonyms()) <= set(CONCEPTS_FILE.read_text("utf-8").splitlines())
    assert "car" in load_synonyms()["automobile"]


def test_verdicts_count_each_seed() -> None:
    red, green, blue = (np.eye(3, dtype=np.uint8)[k] * 255 for k in range(3))
    pictures = np.stack([np.broadcast_to(colour, (128, 128, 3)) for colour in (red, red, green, blue)])
    judge = Judge(ByColour(), ["apple", "leaf", "sea", "night", "day", "year"], (1.0, 1.0))
    apple, sea = judged(judge, pictures, [("an apple", "apple"), ("the sea", "sea")])
    assert (apple.top1, apple.top5, apple.seen) == (1.0, 1.0, ["apple", "apple"])
    assert (sea.top1, sea.top5, sea.seen) == (0.5, 1.0, ["leaf", "sea"])


def test_hits_are_counted_first_and_among_five() -> None:
    network = nn.Flatten()  # a picture's one pixel holds its scores
    scores = torch.eye(8)[:, :, None, None]
    assert hits(network, scores, torch.arange(8)) == (1.0, 1.0)
    first, five = hits(network, torch.arange(8.0).repeat(4, 1)[:, :, None, None], torch.tensor([7, 6, 3, 0]))
    assert (first, five) == (0.25, 0.75)


def test_features_see_edges_whatever_their_sign_and_not_an_even_ground() -> None:
    features = Features()
    picture = torch.full((1, 3, SEEN, SEEN), -0.5)
    even = features(picture)
    picture[..., SEEN // 2 :] = 0.5
    edges = slice(3 * 8 * 8, None)
    assert even[:, edges].abs().max() < 0.2 < 0.5 < features(picture)[:, edges].max()
    assert_close(features(picture)[:, edges], features(-picture)[:, edges])
    assert make_network(7).eval()(picture).shape == (1, 7)


def test_pictures_of_any_size_are_seen_at_one() -> None:
    white = np.full((2, 192, 192, 3), 255, np.uint8)
    assert_close(as_seen(white), torch.ones(2, 3, SEEN, SEEN))


def test_the_shipped_words_are_those_of_the_list() -> None:
    models = Path(__file__).parents[2] / "models" / "Stable-diffusion"
    words = (models / "starter.words.txt").read_text("utf-8").splitlines()
    listed = set(CONCEPTS_FILE.read_text("utf-8").splitlines())
    english = [word for word in words if word.isascii()]
    assert {word for word in english if not word.startswith("+ ")} <= listed
    assert {word for word in english if word.startswith("+ ")} <= {f"+ {addition}" for addition in additions(STYLES)}
