"""What comes, goes and grows in the folders is seen without being asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.app import App
from modules.library import watching
from modules.library.watching import Watcher
from tests.jobs.scene import make_app
from tests.library.test_facts import FIRST, save

LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    one = make_app(tmp_path)
    yield one
    one.store.close()


def watcher(app: App, told: list[object]) -> Watcher:
    one = Watcher(app.models, lambda: True, told.append)
    app.models.records()
    one.poll()
    return one


def touch(folder: Path, seconds: int) -> None:
    """File systems count time in steps that a test may be faster than."""
    os.utime(folder, (seconds, seconds))


def test_files_that_come_and_go(app: App, tmp_path: Path):
    told: list[object] = []
    watch = watcher(app, told)
    assert watch.poll() == () and told == []
    path = save(tmp_path / "models" / "Lora" / "new" / "style.safetensors", LORA)  # not even the folder was there
    assert watch.poll() == ("lora",) and told == [["lora"]]
    assert [one.name for one in app.models.records("lora")] == ["style"]
    assert watch.poll() == ()
    save(path.with_name("second.safetensors"), LORA)
    touch(path.parent, 1)
    save(tmp_path / "models" / "VAE" / "v.safetensors", {"decoder.conv_in.weight": (1, 4, 3, 3)})
    assert watch.poll() == ("vae", "lora")
    path.unlink()
    touch(path.parent, 2)
    assert watch.poll() == ("lora",) and len(app.models.records("lora")) == 1


def test_what_is_no_model_changes_nothing(app: App, tmp_path: Path):
    folder = tmp_path / "models" / "Lora"
    folder.mkdir(parents=True)
    told: list[object] = []
    watch = watcher(app, told)
    for name in ("x.safetensors.part", ".x.safetensors", "x.json", "x.preview.png"):
        (folder / name).write_bytes(b"x")
    touch(folder, 1)
    assert watch.poll() == () and told == []


@pytest.mark.parametrize(("kind", "folder"), [("lora", "Lora"), ("checkpoint", "Stable-diffusion"),
                                              ("controlnet", "ControlNet")])  # fmt: skip
def test_a_growing_file_is_incomplete_until_it_is_whole(app: App, tmp_path: Path, kind: str, folder: str):
    whole = save(tmp_path / "whole.safetensors", LORA).read_bytes()
    path = tmp_path / "models" / folder / "growing.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    watch = watcher(app, [])
    path.write_bytes(whole[: len(whole) // 2])
    touch(path.parent, 1)
    assert watch.poll() == (kind,)
    (record,) = (one for one in app.models.records(kind) if one.name == "growing")  # type: ignore[arg-type]
    assert "incomplete" in str(record.problem)
    path.write_bytes(whole[:-10])
    touch(path.parent, 1)
    assert watch.poll() == ()  # it is still incomplete: nothing to tell
    path.write_bytes(whole)
    touch(path.parent, 1)
    assert watch.poll() == (kind,)
    (record,) = (one for one in app.models.records(kind) if one.name == "growing")  # type: ignore[arg-type]
    assert record.problem is None and record.facts.content


def test_a_header_that_is_longer_than_the_first_look_tells_it_too(app: App, tmp_path: Path):
    shapes = {f"lora_unet_{n:0100}.lora_down.weight": (2, 2) for n in range(1000)}
    path = save(tmp_path / "models" / "Lora" / "long.safetensors", shapes)
    assert app.models.records("lora")[0].problem is None
    os.truncate(path, path.stat().st_size - 1)
    app.models.refresh("lora")
    assert "incomplete: 1 bytes" in str(app.models.records("lora")[0].problem)


def test_a_file_that_is_replaced_is_seen_in_the_end(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "models" / "Lora" / "style.safetensors", LORA)
    watch = watcher(app, [])
    (before,) = app.models.records("lora")
    save(path, {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048)})
    touch(path, 5)
    monkeypatch.setattr(watching, "WHOLE_EVERY", 1)
    assert watch.poll() == ("lora",)
    (after,) = app.models.records("lora")
    assert after.id != before.id and after.facts.family == "SDXL"


def test_what_there_was_no_time_for_is_looked_at_later(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from modules.library import networks

    save(tmp_path / "models" / "Lora" / "style.safetensors", LORA, {"ss_output_name": "Alias"})
    monkeypatch.setattr(networks, "LOOK_BUDGET_S", -1)
    (first,) = app.models.records("lora")
    assert (first.name, first.facts.family, first.problem) == ("style", "", None) and first.id
    monkeypatch.undo()
    assert Watcher(app.models, lambda: True, lambda kinds: None).poll() == ("lora",)
    (second,) = app.models.records("lora")
    assert (second.alias, second.facts.family) == ("Alias", "SD 1.x")


def test_pages_hear_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thread, the bus and the event."""
    import asyncio

    monkeypatch.setattr(watching, "POLL_S", 0.05)
    app = make_app(tmp_path)

    async def hear() -> object:
        with app.events.subscribe(client="tab") as subscription:
            app.models.records()
            app.watcher.start()
            while not app.watcher._folders:  # it has seen what is there
                await asyncio.sleep(0.01)
            save(tmp_path / "models" / "Stable-diffusion" / "sub" / "new.safetensors", FIRST)
            event = await subscription.get(30)
            return event and event.as_message()

    assert asyncio.run(hear()) == {"type": "models", "kinds": ["checkpoint"]}
    app.watcher.stop()
    app.watcher._thread.join(30)
    app.store.close()
