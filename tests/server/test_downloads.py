"""Downloads over HTTP, with a hub of this machine in the place of Civitai and Hugging Face."""

import io
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from modules.app import App, check_pickle
from modules.library.downloads.find import Hubs
from modules.runtime import logs
from modules.runtime.paths import paths_from
from modules.server.api import create_api
from modules.server.gate import Gate
from tests.jobs.scene import PATIENCE_S, Painter, checkpoint_file, flags_for
from tests.library.downloads.hub import Blob, Hub, ends_after, hubs, status, stops_after
from tests.library.downloads.shelves import civitai_model, lora, repository
from tests.server.served import Served


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs() as (one,):
        yield one


@pytest.fixture
def begin(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    for name in ("HF_TOKEN", "CIVITAI_API_TOKEN", "CIVITAI_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    made: list[Served] = []

    def start(*flags: str, huggingface: bool = True) -> Served:
        checkpoint_file(tmp_path / "models" / "Stable-diffusion" / "plain.safetensors")
        parsed = flags_for(tmp_path, *flags)
        painter = Painter()
        local = frozenset({hub.host})
        places = Hubs(hub.url, hub.url if huggingface else "")
        app = App(paths_from(parsed, root=tmp_path), parsed, lambda f, r: painter, hubs=places, local=local)
        app.start()
        made.append(Served(Gate(create_api(app)), app))
        return made[-1]

    yield start
    for one in made:
        one.close()


def ended(served: Served, id: str) -> dict:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        now = served.http.get(f"/api/v1/downloads/{id}").json()
        if now["state"] not in ("queued", "running"):
            return now
        time.sleep(0.02)
    raise AssertionError(now)


def test_from_a_link_to_a_model(begin, hub, tmp_path):
    served = begin()
    civitai_model(hub)
    http = served.http
    found = http.post("/api/v1/downloads/resolve", json={"what": "https://civitai.com/models/4384"}).json()
    assert (found["title"], found["kind"], found["base_model"], found["has_preview"]) == (
        "Dream",
        "lora",
        "SD 1.5",
        True,
    )
    chosen = next(choice for choice in found["choices"] if choice["id"] == found["chosen"])
    assert (chosen["name"], chosen["folder"], chosen["size"]) == ("dream.safetensors", "Lora", len(lora()))
    picture = http.get("/api/v1/downloads/preview", params={"what": found["what"]})
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    assert http.get("/api/v1/downloads/preview", params={"what": "civitai:1"}).status_code == 404
    answer = http.post("/api/v1/downloads", json={"what": found["what"], "file": chosen["id"]})
    assert answer.status_code == 202
    done = ended(served, answer.json()["id"])
    assert (done["state"], done["place"]) == ("done", "Lora/dream.safetensors")
    assert [one["name"] for one in http.get("/sdapi/v1/loras").json()] == ["dream"]
    listed = http.get("/api/v1/downloads").json()
    assert listed["enabled"] and [one["id"] for one in listed["downloads"]] == [done["id"]]
    assert listed["kinds"]["embedding"] == "embeddings" and listed["kinds"]["checkpoint"] == "Stable-diffusion"


def test_a_checkpoint_is_in_the_list_when_it_has_come(begin, hub):
    served = begin()
    served.app.library.list()
    data = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    repository(hub, "org/x", {"new.safetensors": len(data).to_bytes(8, "little") + data + bytes(8)})
    started = served.http.post("/api/v1/downloads", json={"what": "org/x", "kind": "checkpoint"}).json()
    assert ended(served, started["id"])["state"] == "done"
    assert "new.safetensors" in [one["title"] for one in served.http.get("/api/v1/checkpoints").json()]


def test_progress_is_told_to_every_page(begin, hub):
    served = begin()
    repository(hub, "org/x", {"x.safetensors": lora()})
    with served.http.stream("GET", "/api/v1/events", params={"client": "tab"}) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        served.http.post("/api/v1/downloads", json={"what": "org/x"})
        seen = []
        for line in lines:
            if line.startswith("data:"):
                seen.append(json.loads(line[5:]))
            if seen and (seen[-1]["type"], seen[-1].get("state")) == ("download", "done"):
                break
    assert {"type": "models", "kinds": ["lora"]} in seen


def test_pause_and_cancel(begin, hub, tmp_path):
    served = begin()
    repository(hub, "org/x", {"x.safetensors": lora()})
    served.http.post("/api/v1/downloads/resolve", json={"what": "org/x"})
    hub.blobs[f"/org/x/resolve/{'a' * 40}/x.safetensors"].faults = [stops_after(100)]
    id = served.http.post("/api/v1/downloads", json={"what": "org/x"}).json()["id"]
    assert served.http.post(f"/api/v1/downloads/{id}/pause").json()["state"] == "paused"
    assert served.http.post(f"/api/v1/downloads/{id}/resume", json={}).json()["state"] in ("queued", "running", "done")
    assert ended(served, id)["state"] == "done"
    assert served.http.post(f"/api/v1/downloads/{id}/explode").status_code == 404
    assert served.http.post(f"/api/v1/downloads/{id}/cancel", json={"keep": "yes"}).status_code == 422
    assert served.http.post("/api/v1/downloads/none/pause").status_code == 404
    assert served.http.get("/api/v1/downloads/none").status_code == 404


REFUSED = [
    {},
    {"what": ""},
    {"what": 7},
    {"what": "x" * 5000},
    {"what": "dreamshaper"},
    {"what": "https://127.0.0.1/x"},
    {"what": "https://169.254.169.254/latest"},
    {"what": "http://example.com/x"},
    {"what": "file:///etc/passwd"},
    {"what": "civitai:1", "folder": "/etc"},
    {"what": "civitai:1", "file": ["x"]},
    [],
]


def test_what_is_refused(begin):
    served = begin()
    for body in REFUSED:
        for path in ("/api/v1/downloads", "/api/v1/downloads/resolve"):
            answer = served.http.post(path, json=body)
            assert answer.status_code in (422, 400) and answer.json()["error"], body
    assert served.http.get("/api/v1/downloads").json()["downloads"] == []


def test_who_needs_a_key_is_told(begin, hub):
    served = begin(huggingface=False)
    civitai_model(hub)
    hub.blobs["/api/download/models/128713/1"].needs = "canary-key"
    id = served.http.post("/api/v1/downloads", json={"what": "civitai:4384"}).json()["id"]
    failed = ended(served, id)
    assert failed["state"] == "failed" and "key" in failed["error"] and failed["asks_for"] == hub.host
    assert served.http.get("/api/v1/downloads").json()["keys"] == {"Civitai": "", "Hugging Face": ""}
    assert served.http.post("/sdapi/v1/options", json={"civitai_api_key": " canary-key "}).status_code == 200
    assert served.http.get("/api/v1/downloads").json()["keys"]["Civitai"] == "settings"
    served.http.post(f"/api/v1/downloads/{id}/resume")
    assert ended(served, id)["state"] == "done"


def test_keys_are_written_and_never_read(begin, hub, tmp_path, caplog):
    served = begin()
    http = served.http
    assert http.post("/sdapi/v1/options", json={"huggingface_token": "hf_canary"}).status_code == 200
    told = http.get("/sdapi/v1/options").json()
    assert "huggingface_token" not in told and "civitai_api_key" not in told
    http.post("/sdapi/v1/options", json=told | {"samples_format": "webp"})  # what A1111's clients do
    assert served.app.settings.current.huggingface_token == "hf_canary"
    assert "canary" not in json.dumps(served.app.settings.current.overridden())
    bad = http.post("/sdapi/v1/options", json={"civitai_api_key": "canary with spaces"})
    assert bad.status_code == 422 and "canary" not in bad.text
    bad = http.post("/sdapi/v1/txt2img", json={"override_settings": {"civitai_api_key": "canary"}})
    assert bad.status_code == 403 and "canary" not in bad.text
    for path in (
        "/sdapi/v1/cmd-flags",
        "/api/v1/status",
        "/api/v1/downloads",
        "/internal/quicksettings-hint",
        "/internal/sysinfo",
    ):
        assert "canary" not in http.get(path).text
    assert "canary" not in caplog.text
    assert (tmp_path / "config.json").stat().st_mode & 0o077 == 0
    http.post("/sdapi/v1/options", json={"huggingface_token": ""})
    assert http.get("/api/v1/downloads").json()["keys"]["Hugging Face"] == ""


def test_the_whole_log_holds_no_key(begin, hub, monkeypatch):
    """A download that fails in every way, with every kind of key, at the level that says most."""
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-environment")
    stream, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.set_up("DEBUG", stream)
    try:
        served = begin()
        http = served.http
        http.post("/sdapi/v1/options", json={"civitai_api_key": "canary-of-the-settings"})
        civitai_model(hub)
        repository(hub, "org/x", {"x.safetensors": lora()})
        path = f"/org/x/resolve/{'a' * 40}/x.safetensors"
        hub.redirects["/api/download/models/128713/1"] = f"{hub.url}/signed?X-Amz-Signature=canary-signature"
        hub.blobs["/signed"] = Blob(lora(), faults=[status(500), ends_after(50), status(403)])
        links = [
            "https://civitai.com/api/download/models/128713?token=canary-in-a-link",
            "org/x",
            f"{hub.url}/nothing?key=canary-in-a-query",
            "https://user:canary-password@example.com/x",
        ]
        hub.blobs[path].faults = [ends_after(9999), status(403)]
        for link in links:
            answer = http.post("/api/v1/downloads", json={"what": link})
            if answer.status_code == 202:
                assert ended(served, answer.json()["id"])["state"] == "failed"
            assert "canary" not in answer.text
        assert "canary" not in http.get("/api/v1/downloads").text
        asked = json.dumps([one.headers for one in hub.asked])
        assert "canary-in-a-link" in asked and "canary-of-the-environment" in asked
        logging.getLogger("somebody").warning("an answer held canary-of-the-environment")
        said = stream.getvalue()
        assert "download" in said and "canary" not in said
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)


def test_other_machines_may_not_unless_the_user_said_so(begin):
    served = begin("--listen")
    for path in ("/api/v1/downloads", "/api/v1/downloads/resolve", "/api/v1/downloads/x/pause"):
        answer = served.http.post(path, json={"what": "civitai:1"})
        assert answer.status_code == 403 and "--enable-downloads" in answer.json()["error"]
    listed = served.http.get("/api/v1/downloads").json()
    assert not listed["enabled"] and "--enable-downloads" in listed["reason"]


def test_unless_the_user_said_so(begin, hub):
    served = begin("--listen", "--enable-downloads")
    civitai_model(hub)
    assert served.http.post("/api/v1/downloads/resolve", json={"what": "civitai:4384"}).status_code == 200


def test_pickles_with_code_are_thrown_away(tmp_path):
    """The real check, with torch: an honest file passes, one with code does not run."""
    torch.save({"state_dict": {"x": torch.zeros(2)}}, tmp_path / "good.ckpt")
    torch.save({"x": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(
        {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(1, 8))})}, tmp_path / "e.pt"
    )
    for name in ("good.ckpt", "old.pt", "e.pt"):
        check_pickle(tmp_path / name)
    torch.save({"x": Evil(tmp_path / "canary")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="contains code"):
        check_pickle(tmp_path / "evil.ckpt")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="refused"):
        check_pickle(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "canary").exists()


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_nothing_is_asked_of_the_network_at_the_start(begin, hub, monkeypatch):
    import socket

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    app_sockets = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    served = begin()
    monkeypatch.setattr(socket.socket, "connect", app_sockets)
    served.http.get("/api/v1/downloads")
    assert hub.asked == []
