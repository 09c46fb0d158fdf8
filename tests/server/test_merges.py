"""/api/v1/merges: accepted, looked at, cancelled, refused in words."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from modules.server.api import create_api
from modules.server.gate import Gate
from tests.jobs.scene import PATIENCE_S, Painter, make_app
from tests.server.served import Served
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("merges")
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    for seed, name in enumerate("ab", start=1):
        save_tiny(models, f"{name}.safetensors", seed)
    app = make_app(folder, Painter())
    app.start()
    served = Served(Gate(create_api(app), token="long enough a token"), app)
    served.http.headers["authorization"] = "Bearer long enough a token"
    yield served
    served.close()


def wait_for_end(served: Served, id: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_S
    while (found := served.http.get(f"/api/v1/merges/{id}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, found
        threading.Event().wait(0.02)
    return dict(found)


def test_a_merge_is_accepted_and_can_be_followed(served: Served) -> None:
    answer = served.http.post("/api/v1/merges", json={"primary": "a", "secondary": "b", "multiplier": 1, "name": "x"})
    assert answer.status_code == 202 and answer.json()["file"] == "x.safetensors"
    found = wait_for_end(served, answer.json()["id"])
    assert (found["state"], found["error"], found["checkpoint"]) == ("done", None, "x.safetensors")
    assert "x.safetensors" in {one["title"] for one in served.http.get("/api/v1/checkpoints").json()}
    again = served.http.post(f"/api/v1/merges/{found['id']}/cancel").json()
    assert again == found


def test_refusals_name_the_field(served: Served) -> None:
    def refused(status: int, field: str, match: str, **body: Any) -> None:
        answer = served.http.post("/api/v1/merges", json={"primary": "a", "secondary": "b", "name": "y"} | body)
        assert answer.status_code == status, answer.text
        assert match in answer.json()["error"] and answer.json()["detail"][0]["field"] == field

    refused(404, "secondary", "there is no checkpoint 'nothing'", secondary="nothing")
    refused(409, "name", "is one of the files that are merged", name="a")
    refused(422, "discard", "no regular expression", discard="[")
    refused(422, "format", "choose safetensors", format="ckpt")
    refused(422, "multiplier", "must be at most 1", multiplier=2)
    refused(422, "path", "there is no such field", path="/etc/x")
    assert served.http.get("/api/v1/merges/nothing").status_code == 404
    assert served.http.post("/api/v1/merges/nothing/cancel").status_code == 404


def test_it_needs_the_token(served: Served) -> None:
    for method, path in (("POST", ""), ("GET", "/x"), ("POST", "/x/cancel")):
        answer = served.http.request(method, f"/api/v1/merges{path}", headers={"authorization": ""}, json={})
        assert answer.status_code == 401, path
