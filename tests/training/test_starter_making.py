"""How the starter is made: the parts that must not go wrong unnoticed in a run of hours, at tiny size."""

import copy
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.testing import assert_close

from tools.starter.artwork import Concept, Drawing
from tools.starter.captions import caption, load_synonyms, with_telling_tags
from tools.starter.chinese import byte_tokens, distinguish_bytes, sentence_pair
from tools.starter.fidelity import examples, fidelity
from tools.starter.hearing import hearing
from tools.starter.latents import CELLS, LARGER, LIFT_FROM, composite, larger_exist, load_latents, whiten
from tools.starter.networks import (
    SCALE,
    TextSizes,
    UNetSizes,
    VaeSizes,
    make_text_encoder,
    make_unet,
    make_vae,
)
from tools.starter.norms import FastGroupNorm, use_fast_norms
from tools.starter.polish import Polishing, polish_vae
from tools.starter.runstate import Plan, generators, load_state, save_state
from tools.starter.team import Team, train_together
from tools.starter.text import load_tokenizer
from tools.starter.unet import Difficulty, UNetTraining, sample_weights, train_unet
from tools.starter.vae import as_images, peak_signal_to_noise, reconstruct

TOKENIZER = Path(__file__).parents[2] / "modules" / "families" / "configs" / "sd1" / "tokenizer"
CPU = torch.device("cpu")


def concept(name: str, *tags: str, zh: str = "", tags_zh: tuple[str, ...] = ()) -> Concept:
    return Concept(name, name, "food-drink", "food-fruit", tags, zh, tags_zh)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder after the stage latents, with four drawings of noise."""
    drawings = [Drawing(style, concept(name)) for style in ("noto", "3d") for name in ("pear", "fig")]
    rng = np.random.default_rng(0)
    np.save(tmp_path / "artwork.npy", rng.integers(0, 256, (4, 128, 128, 4), np.uint8))
    (tmp_path / "artwork.jsonl").write_text("\n".join(json.dumps(asdict(drawing)) for drawing in drawings))
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "z.npy", rng.standard_normal((8, 4, 16, 16)).astype(np.float16))
    index = [(number, background) for number in range(4) for background in ("white", "blue")]
    (tmp_path / "latents" / "index.json").write_text(json.dumps(index))
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    return tmp_path


def train_a_little(run: Path, minutes: float) -> dict:
    torch.manual_seed(0)
    text = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64))
    unet = make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32)
    training = UNetTraining(Plan(minutes, 1e-3, warm_up=2), batch_size=2, seed=0, meet_every=1)
    train_unet(run, training, unet, text, CPU)
    state = load_state(run / "unet" / "state.pt")
    assert state is not None
    return state


def test_training_goes_on_where_it_ended(run: Path) -> None:
    first = train_a_little(run, minutes=0.04)
    assert first["step"] > 0 and first["samples"] == 2 * first["step"]
    longer = first["elapsed_s"] / 60 + 0.04
    second = train_a_little(run, longer)
    assert second["step"] > first["step"]
    assert second["updates"] == second["step"]
    assert second["optimizer"]["state"][0]["step"] == second["step"]
    assert (run / "unet" / "unet" / "config.json").exists()
    again = train_a_little(run, longer)  # done already: nothing is trained, nothing lost
    assert again["step"] == second["step"]
    assert_close(again["unet_mean"], second["unet_mean"])


def test_text_and_cross_attention_learn_the_words_stay(run: Path) -> None:
    torch.manual_seed(0)
    before = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64)).state_dict()
    after = train_a_little(run, minutes=0.04)["text"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("token_embedding" in name for name in changed)
    assert any("self_attn.v_proj" in name for name in changed)
    assert any("mlp.fc1" in name for name in changed)


def test_a_step_has_the_same_chance_after_a_resume() -> None:
    first, again, other = (generators(7, step) for step in (41, 41, 42))
    assert first[0].random() == again[0].random() != other[0].random()
    assert torch.equal(torch.randn(3, generator=first[1]), torch.randn(3, generator=again[1]))


def test_state_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    assert load_state(file) is None
    save_state({"step": 1}, file)
    with pytest.raises(Exception, match="pickle"):
        save_state({"step": lambda: None}, file)
    assert load_state(file) == {"step": 1}


def test_learning_rate_rises_stays_and_falls() -> None:
    plan = Plan(minutes=10, rate=1.0, warm_up=10, tail=0.5, floor=0.1)
    assert plan.factor(0, 0) == pytest.approx(0.1)
    assert plan.factor(100, 300) == pytest.approx(1)
    assert plan.factor(100, 450) == pytest.approx(0.55)
    assert plan.factor(100, 600) == pytest.approx(0.1)
    assert Plan(20, 1.0, tail=0.5).factor(1000, 600) == pytest.approx(1)  # extended: it has risen again
    assert plan.done(600) and not plan.done(599)


@torch.no_grad()
def test_whitening_changes_the_latents_not_the_pictures() -> None:
    torch.manual_seed(0)
    vae = make_vae(VaeSizes(channels=(32, 32, 32, 32))).eval()
    x = torch.rand(8, 3, 64, 64) * 2 - 1
    x = x * torch.rand(8, 3, 1, 1) + torch.rand(8, 3, 1, 1) - 0.5
    posterior = vae.encode(x).latent_dist
    before = vae.decode(posterior.mean).sample
    z = whiten(vae, posterior.mean, posterior.var.mean((0, 2, 3)))
    assert_close(vae.encode(x).latent_dist.mean, z, atol=1e-3, rtol=1e-3)
    assert_close(vae.decode(z).sample, before, atol=1e-3, rtol=1e-3)
    flat = (z * SCALE).transpose(0, 1).flatten(1)
    covariance = torch.cov(flat)
    deviations = covariance.diagonal().sqrt()
    assert_close(flat.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    assert_close(covariance - torch.diag(covariance.diagonal()), torch.zeros(4, 4), atol=1e-3, rtol=0)
    assert_close(deviations.max(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert (deviations < 1.001).all() and LIFT_FROM < 1


def test_weights_prefer_the_default_style_on_white(run: Path) -> None:
    training = UNetTraining(Plan(1, 1e-3), batch_size=2, seed=0, default_style=0.8, coloured=0.1)
    weights = sample_weights(load_latents(run), training)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == pytest.approx(0.8)  # noto
    assert weights[1] == pytest.approx(0.1 * weights[0])


def test_composite_puts_the_picture_on_the_background() -> None:
    picture = np.zeros((2, 1, 4), np.uint8)
    picture[0, 0] = (255, 0, 0, 255)
    assert_close(composite(picture, "white")[:, 0], np.array([[1, -1, -1], [1, 1, 1]], np.float32))


def test_captions_name_the_thing_the_style_and_the_background() -> None:
    rng = np.random.default_rng(0)
    apple, other = Drawing("noto", concept("apple", "fruit", "malus")), Drawing("3d", concept("fig", "fruit"))
    said = [caption(apple, "white", rng) for _ in range(300)]
    assert said.count("apple") > 60
    assert any("noto style" in words for words in said) and not any("3d" in words for words in said)
    assert any(words.startswith("an apple") for words in said)
    said = [caption(other, "sky blue", rng) for _ in range(100)]
    assert all("sky blue background" in words and "3d" in words for words in said)


def test_keywords_of_many_concepts_are_dropped() -> None:
    drawings = [Drawing("noto", concept(f"fruit {k}", "food", f"only {k}")) for k in range(5)]
    assert [drawing.concept.tags for drawing in with_telling_tags(drawings)] == [(f"only {k}",) for k in range(5)]


def test_synonyms_come_first_even_if_many_concepts_have_the_word() -> None:
    cars = [Drawing("noto", concept(name, "car")) for name in ("automobile", "taxi", "limousine", "railcar", "lorry")]
    told = {drawing.concept.name: drawing.concept.tags for drawing in with_telling_tags(cars)}
    assert told["automobile"][:2] == ("car", "auto") == load_synonyms()["automobile"]
    assert told["limousine"] == ()


def test_captions_in_chinese_name_the_thing_the_style_and_the_background() -> None:
    rng = np.random.default_rng(0)
    apple = concept("apple", "fruit", zh="苹果", tags_zh=("水果",))
    said = [caption(Drawing("3d", apple), "blue", rng, chinese=1.0) for _ in range(200)]
    assert all("苹果" in words or "水果" in words for words in said)
    assert all("蓝色" in words and ("3D" in words or "立体" in words) for words in said)
    mixed = [caption(Drawing("noto", apple), "white", rng, chinese=0.25) for _ in range(400)]
    assert 60 < sum(not words.isascii() for words in mixed) < 140
    english, chinese = sentence_pair(apple, ["noto", "3d"], rng)
    assert english.isascii() and "apple" in english and not chinese.isascii()


def test_bytes_get_embeddings_of_their_own_once(run: Path) -> None:
    foreign = byte_tokens(run)
    assert foreign[:68].sum() == 0 and foreign[150:188].all()  # the first of the vocabulary are ASCII's letters
    words = torch.zeros(49408, 32)
    distinguish_bytes(words, foreign, seed=0)
    assert words[foreign > 0].std() > 0.04 and not words[foreign == 0].any()
    learnt = words.clone()
    distinguish_bytes(words, foreign, seed=1)
    assert torch.equal(words, learnt)


def test_larger_latents_are_trained_on_too(run: Path) -> None:
    assert not larger_exist(run)
    for cells in LARGER:
        np.save(run / "latents" / f"z-{cells}.npy", np.zeros((1, 4, cells, cells), np.float16))
        (run / "latents" / f"z-{cells}.json").write_text(json.dumps([(0, "white")]))
    assert larger_exist(run)
    assert [load_latents(run, cells).z.shape[-1] for cells in (CELLS, *LARGER)] == [CELLS, *LARGER]
    torch.manual_seed(0)
    text = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64))
    unet = make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32)
    training = UNetTraining(Plan(0.02, 1e-3, warm_up=2), batch_size=4, seed=0, larger=1.0, meet_every=1)
    train_unet(run, training, unet, text, CPU)
    state = load_state(run / "unet" / "state.pt")
    assert state is not None and state["samples"] == state["step"]  # one large picture instead of four


def a_worker(run: Path, team: Team) -> None:
    torch.manual_seed(team.rank)
    text = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64))
    text.requires_grad_(False)
    unet = make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32)
    training = UNetTraining(Plan(0.03, 1e-3, warm_up=2), batch_size=2, seed=0, meet_every=4)
    train_unet(run, training, unet, text, CPU, team)
    save_state({"unet": unet.state_dict()}, run / f"{team.rank}.pt")


def test_two_processes_end_with_the_same_weights(run: Path) -> None:
    train_together(2, partial(a_worker, run))
    state, mine, other = (load_state(run / name) for name in ("unet/state.pt", "0.pt", "1.pt"))
    assert state is not None and mine is not None and other is not None
    assert state["step"] % 8 == 0 < state["step"]
    assert state["samples"] == 2 * state["step"]  # of both
    assert_close(mine["unet"], other["unet"])
    assert_close(mine["unet"], state["unet"])


def a_worker_that_fails(team: Team) -> None:
    if team.rank == 1:
        raise ValueError("no more paper")
    team.leader_says(1.0)  # and never hears from the other


def test_if_one_process_fails_so_do_all_and_the_cause_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProcessRaisedException):  # of the one that failed, or of the one that waited for it
        train_together(2, a_worker_that_fails)
    assert "process 2 of 2 has failed" in (told := capfd.readouterr().err) and "no more paper" in told


def test_what_is_drawn_badly_is_drawn_more_often(run: Path) -> None:
    latents = load_latents(run)
    difficulty = Difficulty([latents])
    assert (difficulty.of(latents) == 1).all()
    pear, fig = latents.drawings[0], latents.drawings[2]
    for step in range(200):
        t = torch.tensor([step % 1000, step % 1000])
        difficulty.see([pear, fig], t, torch.tensor([0.3, 0.1]))
    often = dict(zip([(d.style, d.concept.name) for d in latents.drawings], difficulty.of(latents), strict=True))
    assert often["noto", "pear"] == pytest.approx(1.5, abs=0.1)
    assert often["noto", "fig"] == pytest.approx(0.5, abs=0.1)
    assert often["3d", "pear"] == 1  # not seen yet


def test_polishing_goes_on_and_keeps_to_the_latents(run: Path) -> None:
    train_a_little(run, minutes=0.01)
    torch.manual_seed(0)
    first = make_vae(VaeSizes(channels=(32, 32, 32, 32)))
    first.save_pretrained(run / "latents" / "vae")
    before = np.load(run / "latents" / "z.npy")
    steps, elapsed_s = [0], 0.0
    for redrawn in (1.0, 0.5):
        polish_vae(run, Polishing(Plan(elapsed_s / 60 + 0.02, 1e-3), seed=0, batch_size=2, redrawn=redrawn), CPU)
        state = load_state(run / "polish" / "state.pt")
        assert state is not None and state["elapsed_s"] > elapsed_s
        steps, elapsed_s = [*steps, state["step"]], state["elapsed_s"]
    assert steps[0] < steps[1] < steps[2]
    polished = AutoencoderKL.from_pretrained(run / "polish" / "vae").state_dict()
    changed = {name.split(".")[0] for name, weights in first.state_dict().items() if (weights != polished[name]).any()}
    assert changed == {"decoder", "post_quant_conv"}  # the encoder still finds the latents that the UNet knows
    assert np.array_equal(np.load(run / "latents" / "z.npy"), before)


def test_fidelity_is_told_for_each_style_and_background(run: Path) -> None:
    assert examples(run, each=5) == {
        "noto, white": [0, 2],
        "noto, coloured": [1, 3],
        "3d, white": [4, 6],
        "3d, coloured": [5, 7],
    }
    assert examples(run, each=1)["3d, coloured"] == [5]
    torch.manual_seed(0)
    vae = make_vae(VaeSizes(channels=(32, 32, 32, 32))).eval()
    artwork = np.load(run / "artwork.npy")
    each = []
    for number, background in ((0, "white"), (2, "blue")):
        x = as_images([composite(artwork[number], background)], CPU)
        each.append(peak_signal_to_noise(reconstruct(vae, x), x))
    assert fidelity(run, vae, [0, 5], CPU) == pytest.approx(np.mean(each), abs=1e-3)


def test_fast_norms_have_the_gradients_of_pytorchs() -> None:
    torch.manual_seed(0)
    slow = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.GroupNorm(8, 32), torch.nn.Conv2d(32, 2, 3))
    slow.double()
    slow[1].weight.data.uniform_(0.5, 2)
    fast = copy.deepcopy(slow)
    use_fast_norms(fast, CPU)
    assert type(fast[1]) is FastGroupNorm and type(copy.deepcopy(fast)[1]) is FastGroupNorm
    assert fast.state_dict().keys() == slow.state_dict().keys()
    x = torch.randn(2, 3, 7, 9, dtype=torch.double)
    given = []
    for network in (slow, fast):
        shown = x.clone().requires_grad_()
        network(shown).square().sum().backward()
        given.append([shown.grad, *(p.grad for p in network.parameters())])
    assert_close(given[1], given[0])


def test_fast_norms_leave_sequences_to_pytorch() -> None:
    norm = torch.nn.GroupNorm(2, 4)
    x = torch.randn(1, 3, 4).transpose(1, 2)  # as attention hands it over
    expected = norm(x)
    use_fast_norms(norm, CPU)
    assert_close(norm(x), expected)


def test_an_untrained_unet_hears_no_word(run: Path) -> None:
    torch.manual_seed(0)
    text = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64)).eval()
    unet = make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32).eval()
    found = hearing(unet, text, load_tokenizer(run), load_latents(run))
    assert set(found) == {"pear", "fig"}
    assert all(0.8 < ratio < 1.25 for ratio in found.values())
