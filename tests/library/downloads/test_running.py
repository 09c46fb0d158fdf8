import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.library.checkpoints import CheckpointLibrary
from modules.library.downloads import fetch as fetching
from modules.library.downloads import parts
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.find import Hubs
from modules.library.downloads.running import Download, Downloads, UnknownDownload
from modules.library.networks import NetworkLibrary
from tests.library.downloads.hub import Blob, Hub, ends_after, status, stops_after
from tests.library.downloads.shelves import civitai_model, diffusers_files, lora, repository
from tests.library.downloads.test_fetch import safetensors

PATIENCE_S = 90


class Desk:
    """Downloads of a test, and what they told."""

    def __init__(self, hub: Hub, root: Path):
        self.hub, self.root = hub, root
        self.told: list[Download] = []
        self.before: list[Download] = []
        self.finished: list[str] = []
        self.twins: dict[str, Path] = {}
        self.refused: list[Path] = []
        self._news = threading.Condition()
        self.made: list[Downloads] = []
        self.anew()

    def anew(self) -> None:
        """As after a restart."""
        folders = {"lora": self.root / "Lora", "checkpoint": self.root / "Stable-diffusion"}
        self.now = Downloads(
            self.hub.reach(),
            lambda: folders,
            check_pickle=self.check_pickle,
            hubs=Hubs(self.hub.url, self.hub.url),
            publish=self.note,
            finished=self.finished.append,
            twin=self.twins.get,
        )
        self.made.append(self.now)

    def check_pickle(self, path: Path) -> None:
        if b"evil" in path.read_bytes():
            self.refused.append(path)
            raise ValueError("it contains code")

    def note(self, download: Download) -> None:
        with self._news:
            self.told.append(download)
            self._news.notify_all()

    def wait(self, id: str, wanted: Callable[[Download], bool]) -> Download:
        with self._news:
            found = self._news.wait_for(lambda: [one for one in self.told if one.id == id and wanted(one)], PATIENCE_S)
        assert found, [one for one in self.told if one.id == id][-1]
        return found[-1]

    def over(self, download: Download) -> Download:
        return self.wait(download.id, lambda one: one.state in ("done", "failed", "paused", "cancelled"))

    def resume(self, id: str) -> Download:
        """What is waited for after this is told after it."""
        with self._news:
            self.before += self.told
            self.told = []
        return self.now.resume(id)

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def desk(hub: Hub, tmp_path: Path) -> Iterator[Desk]:
    one = Desk(hub, tmp_path)
    yield one
    for made in one.made:
        made.close()


def test_a_lora_with_all_that_belongs_to_it(desk):
    civitai_model(desk.hub)
    done = desk.over(desk.now.start("civitai:4384"))
    assert (done.state, done.place, done.error, done.note) == ("done", "Lora/dream.safetensors", None, "")
    assert done.received == done.size == len(lora()) and desk.finished == ["lora"]
    assert (desk.root / "Lora/dream.safetensors").read_bytes() == lora()
    assert desk.files() == [f"Lora/dream.{end}" for end in ("civitai.info", "json", "preview.png", "safetensors")]
    about = json.loads((desk.root / "Lora/dream.json").read_text())
    assert about["activation text"] == "a dream, of mountains" and about["sd version"] == "SD1"
    assert json.loads((desk.root / "Lora/dream.civitai.info").read_text())["trainedWords"] == [
        "a dream",
        "of mountains",
    ]


def test_sidecars_of_the_user_stay(desk):
    civitai_model(desk.hub)
    (desk.root / "Lora").mkdir()
    (desk.root / "Lora/dream.json").write_text("mine")
    desk.over(desk.now.start("civitai:4384"))
    assert (desk.root / "Lora/dream.json").read_text() == "mine"


def test_a_preview_that_is_none_is_told(desk):
    civitai_model(desk.hub)
    desk.hub.blobs["/preview.png"] = Blob(b"<svg onload=alert(1)>")
    done = desk.over(desk.now.start("civitai:4384"))
    assert done.state == "done" and "preview was not fetched" in done.note


def test_a_diffusers_folder(desk):
    repository(desk.hub, "org/sd", diffusers_files())
    done = desk.over(desk.now.start("org/sd", "diffusers:"))
    assert done.state == "done", done
    folder = desk.root / "Stable-diffusion/sd"
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == safetensors(3000)
    assert (folder / "model_index.json").exists() and not list(desk.root.rglob("*.part*"))
    library = CheckpointLibrary([desk.root / "Stable-diffusion"], desk.root / "cache.db")
    assert [checkpoint.name for checkpoint in library.list()] == ["sd"]


def test_nothing_unfinished_is_a_model(desk):
    files = diffusers_files()
    repository(desk.hub, "org/sd", files)
    last = "/org/sd/resolve/" + "a" * 40 + "/scheduler/scheduler_config.json"
    desk.hub.blobs[last].faults = [status(403)]
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [ends_after(9999), ends_after(300), status(404)]
    first = desk.over(desk.now.start("org/sd", "diffusers:"))
    second = desk.over(desk.now.start("org/x"))
    assert (first.state, second.state) == ("failed", "failed")
    assert list((desk.root / "Stable-diffusion/sd.part/unet").iterdir())
    library = CheckpointLibrary([desk.root / "Stable-diffusion"], desk.root / "cache.db")
    loras = NetworkLibrary({"lora": [desk.root / "Lora"]}, desk.root / "cache.db")
    assert library.list() == () and loras.list("lora") == ()
    before = len(desk.hub.asked)
    assert desk.over(desk.resume(first.id)).state == "done"
    assert len(desk.hub.asked) == before + 1  # the files that were whole are not fetched again


def test_a_restart_keeps_what_came(desk):
    data = safetensors(50_000)
    repository(desk.hub, "org/x", {"x.safetensors": data})
    blob = desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"]
    started = None
    desk.now.resolve("org/x")
    blob.faults = [stops_after(20_000)]
    started = desk.now.start("org/x", kind="lora")
    desk.wait(started.id, lambda one: one.received >= 20_000 or one.state == "failed")
    desk.now.close()
    assert (desk.root / "Lora/x.safetensors.part").stat().st_size == 20_000
    asked = len(desk.hub.asked)
    desk.anew()
    (left,) = desk.now.list()
    assert (left.id, left.state, left.received, left.size) == (started.id, "paused", 20_000, len(data))
    assert len(desk.hub.asked) == asked  # nothing is fetched unasked
    desk.resume(left.id)
    done = desk.over(left)
    assert done.received == len(data) and desk.hub.asked[-1].headers["range"] == "bytes=20000-"
    assert desk.files() == ["Lora/x.json", "Lora/x.safetensors"]


def test_pause_and_cancel(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    blob = desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"]
    desk.now.resolve("org/x")
    desk.now.reach.patience = fetching.Patience(stall_s=15)
    blob.faults = [stops_after(1000)]
    one = desk.now.start("org/x")
    desk.wait(one.id, lambda now: now.received == 1000)
    assert desk.now.pause(one.id).state == "paused"
    assert (desk.root / "Lora/x.safetensors.part").stat().st_size == 1000
    assert desk.now.cancel(one.id).state == "cancelled"
    assert desk.now.resume(one.id).state == "cancelled"
    assert desk.files() == []
    assert desk.over(desk.now.start("org/x")).state == "done"  # and it can be asked for again
    with pytest.raises(UnknownDownload):
        desk.now.pause("nothing")


def test_a_cancel_may_keep_what_came(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [ends_after(10**9), status(403)]
    desk.now.resolve("org/x")
    failed = desk.over(desk.now.start("org/x"))
    assert failed.state == "failed" and failed.asks_for == desk.hub.host
    desk.now.cancel(failed.id, keep=True)
    assert desk.files() == ["Lora/x.safetensors.part", "Lora/x.safetensors.part.json"]


def test_what_is_there_is_not_fetched_again(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    (desk.root / "Lora/sub").mkdir(parents=True)
    (desk.root / "Lora/sub/other name.safetensors").write_bytes(lora())
    asked = desk.now.resolve("org/x") and len(desk.hub.asked)
    done = desk.now.start("org/x")
    assert done.state == "done" and done.note == "it is there already: Lora/sub/other name.safetensors"
    assert len(desk.hub.asked) == asked and desk.finished == []


def test_a_twin_elsewhere_is_told(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    desk.twins[Blob(lora()).sha256] = desk.root / "Stable-diffusion" / "y.safetensors"
    assert "Stable-diffusion/y.safetensors" in desk.now.start("org/x").note


def test_another_file_of_that_name_stays(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    (desk.root / "Lora").mkdir()
    (desk.root / "Lora/x.safetensors").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="something else in Lora is called x.safetensors"):
        desk.now.start("org/x")
    assert desk.over(desk.now.start("org/x", name="../y")).place == "Lora/y.safetensors"
    assert (desk.root / "Lora/x.safetensors").read_bytes() == b"mine"


def test_a_file_that_appears_meanwhile_stays(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})

    def meanwhile(handler, data, start):
        (desk.root / "Lora/x.safetensors").write_bytes(b"mine")
        handler.plain(200, {}, data)

    desk.now.resolve("org/x")
    desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [meanwhile]
    failed = desk.over(desk.now.start("org/x"))
    assert failed.state == "failed" and "appeared meanwhile" in failed.error
    assert (desk.root / "Lora/x.safetensors").read_bytes() == b"mine"


def test_the_same_twice_is_one(desk):
    repository(desk.hub, "org/x", {"x.safetensors": lora(), "other/x.safetensors": lora(1024)})
    desk.now.resolve("org/x", "x.safetensors"), desk.now.resolve("org/x", "other/x.safetensors")
    desk.hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [stops_after(10)]
    first = desk.now.start("org/x", "x.safetensors")
    assert desk.now.start("org/x", "x.safetensors").id == first.id
    with pytest.raises(DownloadError, match="unfinished download of another file"):
        desk.now.start("org/x", "other/x.safetensors")


def test_only_some_run_at_once(desk):
    for number in range(4):
        repository(desk.hub, f"org/x{number}", {f"x{number}.safetensors": lora(768 + number)})
        desk.now.resolve(f"org/x{number}")
    desk.now.reach.patience = fetching.Patience(stall_s=15)
    for number in range(2):
        path = f"/org/x{number}/resolve/{'a' * 40}/x{number}.safetensors"
        desk.hub.blobs[path].faults = [stops_after(10)]
    started = [desk.now.start(f"org/x{number}") for number in range(4)]
    desk.wait(started[1].id, lambda one: one.received == 10)
    assert [desk.now.get(one.id).state for one in started] == ["running", "running", "queued", "queued"]
    desk.now.cancel(started[0].id)
    assert desk.over(started[3]).state == "done"


@pytest.mark.parametrize("promised", ["0" * 64])
def test_a_wrong_hash_is_fetched_anew(desk, promised):
    civitai_model(desk.hub)
    answer = json.loads(desk.hub.answers["/api/v1/model-versions/128713"][2])
    answer["files"][1]["hashes"]["SHA256"] = promised
    desk.hub.answers["/api/v1/model-versions/128713"] = (200, {}, json.dumps(answer).encode())
    failed = desk.over(desk.now.start("civitai:@128713"))
    assert failed.state == "failed" and "SHA-256" in failed.error
    assert desk.files() == ["Lora/dream.safetensors.part", "Lora/dream.safetensors.part.json"]
    assert desk.over(desk.resume(failed.id)).state == "failed"
    assert [one.headers.get("range") for one in desk.hub.asked][-2:] == [None, None]


def test_pickles_are_checked_before_they_are_models(desk):
    civitai_model(desk.hub)
    good = desk.over(desk.now.start("civitai:4384", "dream.ckpt"))
    assert good.state == "done", good
    path = "/api/download/models/128713/2"
    desk.hub.blobs[path] = Blob(b"PK\x03\x04" + b"evil" * 600)
    files = {"x.ckpt": desk.hub.blobs[path].data}
    repository(desk.hub, "org/evil", files)
    bad = desk.over(desk.now.start("org/evil", kind="lora"))
    assert bad.state == "failed" and "thrown away: it contains code" in bad.error
    assert desk.refused == [desk.root / "Lora/x.ckpt.part"] and not desk.refused[0].exists()


def test_what_the_hub_refuses_is_not_fetched(desk):
    version = civitai_model(desk.hub)
    version["files"][1]["pickleScanResult"] = "Danger"
    desk.hub.answers["/api/v1/model-versions/128713"] = (200, {}, json.dumps(version).encode())
    with pytest.raises(DownloadError, match="scan found code"):
        desk.now.start("civitai:@128713", "dream.safetensors")


def test_the_kind_has_to_be_known(desk):
    repository(desk.hub, "org/x", {"x.safetensors": safetensors()})
    with pytest.raises(DownloadError, match="say one of: lora, checkpoint"):
        desk.now.start("org/x")
    with pytest.raises(DownloadError, match="there is no kind"):
        desk.now.start("org/x", kind="../..")


@pytest.mark.parametrize("name", ["...", "x\x00", "CON", "a/b/c", "x.exe", "模型"])
def test_names_of_the_user_stay_in_the_folder(desk, name):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    try:
        done = desk.over(desk.now.start("org/x", name=name))
    except DownloadError:
        return
    assert done.place.startswith("Lora/") and done.place.count("/") == 1 and done.place.endswith(".safetensors")


def test_tokens_and_secrets_are_nowhere(desk, caplog):
    """Not in the log, not in what is told, not on the disk."""
    caplog.set_level(logging.DEBUG)
    desk.now.reach.token_for = lambda host: "canary-setting" if host == desk.hub.host else None
    civitai_model(desk.hub)
    desk.hub.blobs["/signed"] = Blob(lora(), disposition="filename=z.safetensors", faults=[], needs="canary-setting")
    link = f"{desk.hub.url}/signed?X-Amz-Signature=canary-query"
    found = desk.now.resolve(link)
    desk.hub.blobs["/signed"].faults = [ends_after(100), status(403)]
    failed = desk.over(desk.now.start(link))
    assert failed.state == "failed"
    desk.now.resolve("https://civitai.com/api/download/models/128713?token=canary-link")
    bad = desk.over(desk.now.start("https://civitai.com/api/download/models/128713?token=canary-link"))
    assert bad.state == "done"
    assert any("canary-query" in one.path for one in desk.hub.asked)
    assert any(one.headers.get("authorization") == "Bearer canary-link" for one in desk.hub.asked)
    written = b"".join(path.read_bytes() for path in desk.root.rglob("*") if path.is_file())
    said = caplog.text + repr(desk.before + desk.told) + repr(desk.now.list()) + found.what + written.decode("latin-1")
    assert "canary" not in said
    desk.now.close()
    desk.anew()
    desk.now.reach.token_for = lambda host: "canary-setting"
    with pytest.raises(DownloadError, match="paste the link again"):
        desk.now.resume(failed.id)
    again = desk.now.start(link)
    assert again.id == failed.id and desk.wait(again.id, lambda one: one.state == "done")
    assert desk.hub.asked[-1].headers["range"] == "bytes=100-"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"id":1}', b'{"files": [{"url": 1, "name": "x"}], "id": "x"}', b"\xff", b"[" * 100_000],
)
def test_states_from_elsewhere_harm_nobody(desk, content):
    (desk.root / "Lora").mkdir()
    (desk.root / "Lora/x.safetensors.part.json").write_bytes(content)
    assert desk.now.list() == ()


def test_a_state_cannot_lead_out_of_its_folder(desk):
    repository(desk.hub, "org/sd", diffusers_files())
    desk.hub.blobs[f"/org/sd/resolve/{'a' * 40}/model_index.json"].faults = [status(404)]
    desk.over(desk.now.start("org/sd", "diffusers:"))
    state = desk.root / "Stable-diffusion/sd.part.json"
    content = json.loads(state.read_text())
    content["files"][1]["name"] = "../../../evil"
    state.write_text(json.dumps(content))
    assert parts.load(state, "checkpoint") is None


def test_a_full_disk_is_told_at_once(desk, monkeypatch):
    repository(desk.hub, "org/x", {"x.safetensors": lora()})
    monkeypatch.setattr(fetching, "LEFT_FREE", 2**62)
    with pytest.raises(DownloadError, match="disk is too full"):
        desk.now.start("org/x")
    assert desk.files() == []
