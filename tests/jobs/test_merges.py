"""Merges on the real worker thread, with real tiny checkpoints, files and processes."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.app import App
from modules.families.loader import read_model
from modules.generation.engine import generate
from modules.generation.plan import plan
from modules.generation.request import GenerationRequest
from modules.generation.shelf import Shelf
from modules.jobs import merges
from modules.jobs.merges import AlreadyThere, Merge, MergeRefused, MergeRequest, NotThere, TooMany
from modules.library.hashes import legacy_hash, sha256_of
from modules.settings.schema import Settings
from tests.jobs.scene import PATIENCE_S, Painter, Pause, submit, wait_for_end
from tests.tiny import FP32, HEADS, save_tiny, save_tiny_of, tiny_parts

YAML = "model: {params: {unet_config: {params: {num_heads: 4}}, cond_stage_config: {params: {heads: 2}}}}"
Start = Callable[..., App]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate("abc", start=1):
        save_tiny(folder, f"{name}.safetensors", seed)
    return folder


@pytest.fixture
def models(tmp_path: Path, parents: Path) -> Path:
    folder = tmp_path / "models" / "Stable-diffusion"
    shutil.copytree(parents, folder)
    return folder


def ask(app: App, **fields: Any) -> Merge:
    return app.merges.submit(MergeRequest(**{"primary": "a", "secondary": "b", "tertiary": "c", **fields}))


def end_of(app: App, merge: Merge) -> Merge:
    ended = threading.Event()
    tell = app.merges._tell

    def told(one: Merge) -> None:
        tell(one)
        if one.ended and one.id == merge.id:
            ended.set()

    app.merges._tell = told  # type: ignore[method-assign]
    if not merge.ended:
        assert ended.wait(PATIENCE_S), merge.described()
    return merge


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Holds every merge in the middle of its file until the test lets it go on."""
    pause = Pause()
    watch = merges._Teller.watch

    def wait(self: Any, done: int, total: int) -> None:
        if self._merge.phase == "merging" and done > total / 3 > 0 and not pause.reached.is_set():
            pause.reached.set()
            assert pause.go.wait(PATIENCE_S)
        watch(self, done, total)

    monkeypatch.setattr(merges._Teller, "watch", wait)
    yield pause
    pause.go.set()


def test_a_merge_is_a_checkpoint_that_draws_and_names_its_parents(start: Start, models: Path) -> None:
    (models / "b.yaml").write_text(YAML, "utf-8")
    app = start(Painter())
    merge = end_of(app, ask(app, multiplier=0.25, half=True))
    assert (merge.state, merge.error, merge.warnings) == ("done", None, [])
    target = models / "0.75(a) + 0.25(b).safetensors"
    assert merge.target == target and target.with_suffix(".yaml").read_text("utf-8") == YAML
    assert names_in(models) == {*(f"{x}.safetensors" for x in "abc"), "b.yaml", "plain.safetensors"} | {
        target.name,
        target.with_suffix(".yaml").name,
    }
    a, b = load_file(models / "a.safetensors"), load_file(models / "b.safetensors")
    found = load_file(target)
    assert all(torch.equal(found[name], (a[name] * 0.75 + b[name] * 0.25).half()) for name in a)
    metadata = metadata_of(target)
    hashes = [sha256_of(models / f"{x}.safetensors") for x in "ab"]
    assert json.loads(metadata["sd_merge_recipe"]) == {
        "type": "webui",
        "primary_model_hash": hashes[0],
        "secondary_model_hash": hashes[1],
        "tertiary_model_hash": None,
        "interp_method": "Weighted sum",
        "multiplier": 0.25,
        "save_as_half": True,
        "custom_name": "",
        "config_source": 0,
        "bake_in_vae": "None",
        "discard_weights": "",
        "is_inpainting": False,
        "is_instruct_pix2pix": False,
    }
    assert json.loads(metadata["sd_merge_models"])[hashes[1]] == {
        "name": "b.safetensors",
        "legacy_hash": legacy_hash(models / "b.safetensors"),
        "sd_merge_recipe": None,
    }
    assert metadata["format"] == "pt" and metadata["easel.config"] == HEADS["easel.config"]
    assert app.library.find("0.75(a) + 0.25(b)").path == target and merge.checkpoint == target.name
    assert app.model_status.state == "ready"

    checkpoint = app.library.hashed(app.library.find(target.name))
    model = read_model(target, FP32, checkpoint.config)
    wanted = GenerationRequest(prompt="a cat", checkpoint="x", width=64, height=64, steps=2, seed=1)
    (made,) = generate(plan(wanted), Shelf.of(model, checkpoint), Settings(), lambda progress: None)
    assert made.image.size == (64, 64) and len(made.image.getcolors(64 * 64) or []) > 10
    assert "Model: 0.75(a) + 0.25(b)" in made.infotext

    again = end_of(app, ask(app, primary="0.75(a) + 0.25(b)", secondary="c", name="grandchild"))
    assert again.state == "done"
    models_of = json.loads(metadata_of(again.target)["sd_merge_models"])
    assert {one["name"] for one in models_of.values()} == {target.name, *(f"{x}.safetensors" for x in "abc")}
    assert models_of[checkpoint.sha256]["sd_merge_recipe"]["multiplier"] == 0.25


def test_it_comes_between_the_job_that_runs_and_those_that_wait(start: Start, models: Path) -> None:
    pause = Pause()
    painter = Painter(pause)
    app = start(painter)
    first, second = submit(app, seed=1), submit(app, seed=2)
    pause.wait()
    merge = ask(app, name="x")
    assert merge.state == "queued" and [event.data["state"] for event in app.merges.present()] == ["queued"]
    run: list[tuple[int, bool]] = []
    painter.on_step = lambda image, step: run.append((image.seed, merge.ended))
    pause.go.set()
    wait_for_end(app, first.id)
    wait_for_end(app, second.id)
    assert end_of(app, merge).state == "done"
    assert (1, False) in run and {ended for seed, ended in run if seed == 2} == {True}


def test_progress_is_told(start: Start, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "TOLD_A_SECOND", 1e9)
    app = start(Painter())
    told: list[dict[str, Any]] = []
    status: list[str] = []
    publish = app.events.publish

    def heard(event: Any) -> None:
        if event.type == "merge":
            told.append(dict(event.data))
        if event.type == "model":
            status.append(event.data["text"])
        publish(event)

    app.events.publish = heard  # type: ignore[method-assign]
    merge = end_of(app, ask(app, name="x"))
    assert {one["phase"] for one in told} == {"waiting", "hashing", "merging", "saving"}
    merging = [(one["done"], one["total"]) for one in told if one["phase"] == "merging"]
    assert merging == sorted(merging) and merging[-1][0] == merging[-1][1] > 1e6
    assert told[-1]["state"] == merge.state == "done"
    assert any(text.startswith("merging x, ") and text.endswith("%") for text in status)
    assert app.model_status.state == "ready"


@pytest.mark.parametrize(
    ("fields", "kind", "match"),
    [
        ({"primary": "nothing"}, NotThere, "there is no checkpoint 'nothing'"),
        ({"secondary": " "}, MergeRefused, "choose a checkpoint as model B; Weighted sum needs 2"),
        ({"tertiary": "", "method": "Add difference"}, MergeRefused, "choose a checkpoint as model C"),
        ({"vae": "nothing.pt"}, NotThere, "there is no VAE 'nothing.pt'"),
        ({"discard": "(x"}, MergeRefused, "no regular expression"),
        ({"name": "x.vae"}, MergeRefused, "can't be the name of a checkpoint"),
        ({"name": "..."}, MergeRefused, "can't be the name of a checkpoint"),
        ({"name": "a"}, AlreadyThere, r"a\.safetensors is one of the files that are merged"),
        ({"name": "b.safetensors", "overwrite": True}, AlreadyThere, r"b\.safetensors is one of the files"),
        ({"method": "No interpolation"}, AlreadyThere, r"a\.safetensors is one of the files"),
        ({"name": "c"}, AlreadyThere, r"c\.safetensors is there already; .* allow overwriting"),
        ({"name": "plain", "vae": "plain", "overwrite": True}, AlreadyThere, r"plain\.safetensors is one of the files"),
        ({"name": "config"}, AlreadyThere, r"config\.yaml is there already"),
    ],
)
def test_refusals(start: Start, models: Path, fields: dict[str, Any], kind: type[MergeRefused], match: str) -> None:
    (models / "b.yaml").write_text(YAML, "utf-8")
    (models / "config.yaml").write_text("theirs", "utf-8")
    app = start(Painter())
    (models.parent / "VAE").mkdir()
    (models.parent / "VAE" / "plain.pt").symlink_to(models / "plain.safetensors")
    before = names_in(models)
    with pytest.raises(MergeRefused, match=match) as refusal:
        ask(app, **fields)
    assert type(refusal.value) is kind
    assert names_in(models) == before and (models / "config.yaml").read_text("utf-8") == "theirs"


def test_a_request_says_what_it_may_be() -> None:
    for fields, match in (
        ({"format": "ckpt"}, "pickles, which are read here but not written; choose safetensors"),
        ({"multiplier": 1.5}, "less than or equal to 1"),
        ({"multiplier": "0.5"}, "valid number"),
        ({"method": "Cosine"}, "'No interpolation', 'Weighted sum' or 'Add difference'"),
        ({"discard": "x" * 1001}, "at most 1000 characters"),
        ({"folder": "/tmp"}, "Extra inputs are not permitted"),
    ):
        with pytest.raises(ValidationError, match=match):
            MergeRequest(primary="a", **fields)  # type: ignore[arg-type]


def test_names_stay_in_the_folder(start: Start, models: Path) -> None:
    app = start(Painter())
    merge = end_of(app, ask(app, name="../../x/y: *", multiplier=0))
    assert merge.state == "done" and merge.target == models / "_._.._x_y_ _.safetensors"
    assert merge.target.is_file() and not (models.parents[1] / "x").exists()


def test_overwriting_is_done_when_it_is_said(start: Start, models: Path) -> None:
    (models / "b.yaml").write_text(YAML, "utf-8")
    (models / "c.yaml").write_text("theirs", "utf-8")
    app = start(Painter())
    old = load_file(models / "c.safetensors")
    kept = end_of(app, ask(app, name="c", config_from="Don't", overwrite=True))
    assert kept.state == "done" and (models / "c.yaml").read_text("utf-8") == "theirs"
    assert kept.warnings == ["c.yaml was there already, and is read as the configuration of the result"]
    found = load_file(models / "c.safetensors")
    assert not all(torch.equal(found[name], old[name]) for name in old)
    assert end_of(app, ask(app, name="c", config_from="B", overwrite=True)).state == "done"
    assert (models / "c.yaml").read_text("utf-8") == YAML
    none = end_of(app, ask(app, name="d", config_from="C", method="Add difference", tertiary="a"))
    assert none.warnings == ["model C has no .yaml beside it: none was copied"]
    assert not (models / "d.yaml").exists()


def test_a_file_that_comes_meanwhile_is_not_overwritten(start: Start, models: Path, held: Pause) -> None:
    (models / "b.yaml").write_text(YAML, "utf-8")
    app = start(Painter())
    merge = ask(app, name="x")
    held.wait()
    with pytest.raises(AlreadyThere, match=r"another merge is about to write x\.safetensors"):
        ask(app, name="x", overwrite=True)
    (models / "x.safetensors").write_bytes(b"theirs")
    held.go.set()
    assert end_of(app, merge).error is not None and "x.safetensors has come there meanwhile" in str(merge.error)
    assert (models / "x.safetensors").read_bytes() == b"theirs"
    assert names_in(models) == {*(f"{x}.safetensors" for x in "abcx"), "plain.safetensors", "b.yaml"}


def test_cancelled_in_the_middle_nothing_is_left(start: Start, models: Path, held: Pause) -> None:
    app = start(Painter())
    before = names_in(models)
    merge, waiting = ask(app, name="x"), ask(app, name="y")
    held.wait()
    assert any(name.endswith(".part") for name in names_in(models) - before)
    assert app.merges.cancel(waiting.id).state == "cancelled"
    assert app.merges.cancel(merge.id).state == "running"
    held.go.set()
    assert end_of(app, merge).state == "cancelled" and names_in(models) == before
    assert app.merges.cancel(merge.id).state == "cancelled"
    assert end_of(app, ask(app, name="x")).state == "done" and waiting.state == "cancelled"
    assert names_in(models) == before | {"x.safetensors"}
    assert app.model_status.state == "ready"


def test_the_end_of_the_program_leaves_nothing(start: Start, models: Path, held: Pause) -> None:
    app = start(Painter())
    before = names_in(models)
    merge = ask(app, name="x")
    held.wait()
    app.worker._stopping.set()
    held.go.set()
    assert end_of(app, merge).state == "cancelled" and names_in(models) == before


def test_what_a_crash_left_is_removed_at_the_next_start(start: Start, models: Path) -> None:
    left = models / ".easel-0123456789abcdef.part"
    left.write_bytes(b"half")
    start(Painter())
    assert not left.exists()


def test_a_full_disk_is_told_before_and_while(start: Start, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    app = start(Painter())
    before = names_in(models)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 30_000_000))
        merge = end_of(app, ask(app, name="x"))
    assert merge.state == "failed" and "x.safetensors needs 16 MB, but only 30 MB are free" in str(merge.error)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, hard))  # as a disk that is full then
    try:
        merge = end_of(app, ask(app, name="x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert merge.error == "x.safetensors was not written: the disk is full; nothing of it is left on the disk"
    assert names_in(models) == before
    assert end_of(app, ask(app, name="x")).state == "done"


def test_parents_that_change_meanwhile_are_noticed(start: Start, models: Path, held: Pause) -> None:
    app = start(Painter())
    merge = ask(app, name="x")
    held.wait()
    os.utime(models / "b.safetensors", ns=(1, 1))
    held.go.set()
    assert end_of(app, merge).error == "one of the models was changed while it was merged; merge again"
    assert not merge.target.exists()


def test_what_does_not_fit_fails_with_its_sentence(start: Start, models: Path) -> None:
    save_tiny_of(models / "xl.safetensors", "sdxl", tiny_parts("sdxl"))
    app = start(Painter())
    merge = end_of(app, ask(app, secondary="xl", name="x"))
    assert merge.state == "failed" and "different families" in str(merge.error)
    assert end_of(app, ask(app, discard=r"^first_stage_model\.", name="x")).state == "done"
    assert not any(name.startswith("first_stage_model") for name in load_file(models / "x.safetensors"))


def test_metadata_as_they_are_wanted(start: Start, models: Path) -> None:
    for name, own in {
        "a": {"trained": "by a", "modelspec.hash_sha256": "0xabc", "modelspec.prediction_type": "epsilon"},
        "b": {"trained": "by b", "more": "b", "modelspec.prediction_type": "v_prediction"},
    }.items():
        save_file(load_file(models / f"{name}.safetensors"), models / f"{name}.safetensors", HEADS | own)
    app = start(Painter())
    read = {"format": "pt", "modelspec.prediction_type": "epsilon", **HEADS}

    def made(**fields: Any) -> dict[str, str]:
        return metadata_of(end_of(app, ask(app, name="x", overwrite=True, **fields)).target)

    assert made(save_metadata=False, metadata={"x": "y"}) == read
    assert made(add_recipe=False) == read | {"trained": "by b", "more": "b"}
    own = {"trained": "by hand", "list": [1, "ä"], "modelspec.prediction_type": "v"}
    assert made(add_recipe=False, metadata=own) == read | {
        "trained": "by hand",
        "more": "b",
        "list": '[1, "ä"]',
        "modelspec.prediction_type": "v",
    }
    assert made(copy_metadata=False).keys() == {*read, "sd_merge_recipe", "sd_merge_models"}


def test_a_baked_vae_and_an_inpainting_model_are_named(start: Start, models: Path) -> None:
    save_tiny_of(models / "paint.safetensors", "sd1", tiny_parts("sd1", 7, 9))
    (models.parent / "VAE").mkdir()
    shutil.copy(models / "c.safetensors", models.parent / "VAE" / "sharp.safetensors")
    app = start(Painter())
    merge = end_of(app, ask(app, primary="paint", vae="sharp.safetensors"))
    assert merge.state == "done" and merge.target.name == "0.7(paint) + 0.3(b).inpainting.safetensors"
    recipe = json.loads(metadata_of(merge.target)["sd_merge_recipe"])
    assert recipe["is_inpainting"] is True and recipe["bake_in_vae"] == "sharp.safetensors"
    name = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(load_file(merge.target)[name], load_file(models / "c.safetensors")[name])
    assert app.library.find("0.7(paint) + 0.3(b).inpainting").path == merge.target


def test_too_many_merges_are_refused(start: Start, models: Path) -> None:
    pause = Pause()
    app = start(Painter(pause))
    submit(app)
    pause.wait()
    asked = [ask(app, name=f"x{number}") for number in range(merges.MOST_WAITING)]
    with pytest.raises(TooMany, match="16 merges are waiting already"):
        ask(app, name="y")
    for one in asked:
        app.merges.cancel(one.id)
    last = ask(app, name="y")
    pause.go.set()
    assert end_of(app, last).state == "done"
    assert names_in(models) == {*(f"{x}.safetensors" for x in "abcy"), "plain.safetensors"}
