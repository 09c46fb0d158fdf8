"""How the starter is made: the parts that must not go wrong unnoticed in a run of hours, at tiny size."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tools.starter.artwork import Concept, Drawing
from tools.starter.captions import caption, load_synonyms, with_telling_tags
from tools.starter.chinese import byte_tokens, distinguish_bytes, sentence_pair
from tools.starter.hearing import hearing
from tools.starter.latents import CELLS, LARGER, LIFT_FROM, composite, larger_exist, load_latents, whiten
from tools.starter.networks import SCALE, TextSizes, UNetSizes, VaeSizes, make_text_encoder, make_unet, make_vae
from tools.starter.polish import Polishing, polish_vae
from tools.starter.runstate import Plan, generators, load_state, save_state
from tools.starter.text import load_tokenizer
from tools.starter.unet import UNetTraining, sample_weights, train_unet

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
    train_unet(run, UNetTraining(Plan(minutes, 1e-3, warm_up=2), batch_size=2, seed=0), unet, text, CPU)
    state = load_state(run / "unet" / "state.pt")
    assert state is not None
    return state


def test_training_goes_on_where_it_ended(run: Path) -> None:
    first = train_a_little(run, minutes=0.04)
    assert first["step"] > 0 and first["samples"] == 2 * first["step"]
    second = train_a_little(run, minutes=0.12)
    assert second["step"] > first["step"]
    assert second["updates"] == second["step"]
    assert second["optimizer"]["state"][0]["step"] == second["step"]
    assert (run / "unet" / "unet" / "config.json").exists()
    again = train_a_little(run, minutes=0.12)  # done already: nothing is trained, nothing lost
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
    training = UNetTraining(Plan(0.02, 1e-3, warm_up=2), batch_size=4, seed=0, larger=1.0)
    train_unet(run, training, unet, text, CPU)
    state = load_state(run / "unet" / "state.pt")
    assert state is not None and state["samples"] == state["step"]  # one large picture instead of four


def test_polishing_goes_on_and_keeps_to_the_latents(run: Path) -> None:
    train_a_little(run, minutes=0.01)
    torch.manual_seed(0)
    make_vae(VaeSizes(channels=(32, 32, 32, 32))).save_pretrained(run / "latents" / "vae")
    before = np.load(run / "latents" / "z.npy")
    for minutes, redrawn in ((0.02, 1.0), (0.06, 0.5)):
        polish_vae(run, Polishing(Plan(minutes, 1e-3), seed=0, batch_size=2, redrawn=redrawn), CPU)
    state = load_state(run / "polish" / "state.pt")
    assert state is not None and state["step"] > 1 and state["elapsed_s"] >= 0.06 * 60
    assert (run / "polish" / "vae" / "config.json").exists()
    assert np.array_equal(np.load(run / "latents" / "z.npy"), before)


def test_an_untrained_unet_hears_no_word(run: Path) -> None:
    torch.manual_seed(0)
    text = make_text_encoder(TextSizes(hidden=32, layers=1, heads=2, intermediate=64)).eval()
    unet = make_unet(UNetSizes(channels=(32, 64), attention=(False, True), heads=2), context=32).eval()
    found = hearing(unet, text, load_tokenizer(run), load_latents(run))
    assert set(found) == {"pear", "fig"}
    assert all(0.8 < ratio < 1.25 for ratio in found.values())
