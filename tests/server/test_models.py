"""Models over HTTP: lists, facts, notes, previews; and nothing of the machine in any answer."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.scene import Painter, wait_for_end
from tests.library.test_facts import FIRST, save
from tests.server.served import Served

LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}


def png(side: int = 900, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side // 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def served(serve, tmp_path: Path) -> Served:
    folder = tmp_path / "models" / "Lora"
    tags = json.dumps({"1_x": {"cat": 3, "<script>alert(1)</script>": 1}})
    save(folder / "people" / "a.safetensors", LORA, {"ss_tag_frequency": tags, "ss_output_name": "Anna"})
    save(folder / "b <img src=x onerror=alert(1)>.safetensors", LORA)
    (folder / "people" / "a.preview.png").write_bytes(png())
    save(tmp_path / "models" / "Stable-diffusion" / "m.safetensors", FIRST)
    return serve(Painter())


def listed(served: Served, query: str = "") -> dict:
    answer = served.http.get(f"/api/v1/models?{query}")
    assert answer.status_code == 200
    return answer.json()


def id_of(served: Served, name: str) -> str:
    return next(one["id"] for one in listed(served)["models"] if one["name"] == name)


def test_lists_are_small_and_hold_no_path(served: Served, tmp_path: Path):
    answer = served.http.get("/api/v1/models?kind=lora&limit=1&sort=name")
    found = answer.json()
    (one,) = found.pop("models")
    assert found == {"total": 2, "offset": 0, "families": {"SD 1.x": 2}, "kinds": {"lora": 2}}
    assert (one["name"], one["folder"], one["value"], one["alias"]) == ("a", "people", "a", "Anna")
    assert one["family"] == "SD 1.x" and one["dtype"] == "F16" and one["format"] == "safetensors"
    assert len(answer.content) < 1000
    everything = [f"/api/v1/models?kind={kind}" for kind in ("", "lora", "checkpoint,vae")]
    everything += [f"/api/v1/models/{one['id']}", "/api/v1/models/folders", "/api/v1/models/duplicates"]
    for address in everything:
        text = served.http.get(address).text
        assert str(tmp_path) not in text and tmp_path.name not in text
    assert served.http.get("/api/v1/models/folders?kind=lora").json() == {
        "folders": [{"folder": "", "count": 1}, {"folder": "people", "count": 1}]
    }


@pytest.mark.parametrize(
    "query", ["kind=loras", "sort=colour", "order=up", "limit=0", "limit=501", "offset=-1", "limit=x"]
)
def test_what_cannot_be_asked_for(served: Served, query: str):
    answer = served.http.get(f"/api/v1/models?{query}")
    assert answer.status_code == 422 and query.partition("=")[0] in answer.text


def test_all_of_one_model(served: Served, tmp_path: Path):
    found = served.http.get(f"/api/v1/models/{id_of(served, 'a')}").json()
    assert found["tags"] == [{"tag": "cat", "count": 3}, {"tag": "<script>alert(1)</script>", "count": 1}]
    assert found["metadata"] == {"ss_output_name": "Anna"} and found["preferred_weight"] == 0
    for id in ("0" * 20, "..%2f..%2fetc%2fpasswd", "x" * 5000, "%00"):
        answer = served.http.get(f"/api/v1/models/{id}")
        assert answer.status_code == 404 and len(answer.content) < 1000
    (tmp_path / "models" / "Lora" / "people" / "a.safetensors").write_bytes(b"<!DOCTYPE html>")
    broken = served.http.get(f"/api/v1/models/{found['id']}").json()
    assert "HTML" in broken["problem"] and broken["metadata"] == {}


def test_notes_go_into_a1111s_file(served: Served, tmp_path: Path):
    sidecar = tmp_path / "models" / "Lora" / "people" / "a.json"
    sidecar.write_text('{"unknown": 1, "notes": "old"}')
    address = f"/api/v1/models/{id_of(served, 'a')}"
    answer = served.http.put(f"{address}/notes", json={"notes": "new\x00", "preferred_weight": 0.75})
    assert answer.json()["written"] == ["notes", "preferred_weight"]
    assert json.loads(sidecar.read_text()) == {"unknown": 1, "notes": "new", "preferred weight": 0.75}
    found = served.http.get(address).json()
    assert (found["notes"], found["preferred_weight"]) == ("new", 0.75)
    for body in ({"notes": 5}, {"path": "/etc/x"}, {"preferred_weight": 1e9}, {"notes": "x" * 20_001}):
        assert served.http.put(f"{address}/notes", json=body).status_code == 422
    sidecar.write_text("{broken")
    assert served.http.put(f"{address}/notes", json={"notes": "x"}).status_code == 409
    assert sidecar.read_text() == "{broken"


def test_previews_are_small_and_kept(served: Served, tmp_path: Path):
    one = next(one for one in listed(served)["models"] if one["name"] == "a")
    answer = served.http.get(one["preview"])
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("WEBP", (384, 192))
    assert "immutable" in answer.headers["cache-control"] and "sandbox" in answer.headers["content-security-policy"]
    address = f"/api/v1/models/{one['id']}/preview"
    mark = served.http.get(address).headers["etag"]
    assert served.http.get(address, headers={"if-none-match": mark}).status_code == 304
    assert served.http.get(f"{address}?side=5000").status_code == 422
    for broken in (b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"x" * 100, b"<svg/>", b""):
        (tmp_path / "models" / "Lora" / "people" / "a.preview.png").write_bytes(broken)
        assert served.http.get(address).status_code == 404
    other = id_of(served, "b <img src=x onerror=alert(1)>")
    assert served.http.get(f"/api/v1/models/{other}/preview").status_code == 404


def test_a_preview_can_be_given(served: Served, tmp_path: Path):
    folder = tmp_path / "models" / "Lora" / "people"
    address = f"/api/v1/models/{id_of(served, 'a')}/preview"
    before = listed(served, "search=anna")["models"][0]["preview"]
    answer = served.http.put(address, content=png(3000, "blue"), headers={"content-type": "image/png"})
    assert answer.status_code == 200 and answer.json()["preview"] != before
    with Image.open(folder / "a.png") as image:
        assert image.size == (2048, 1024) and image.getpixel((0, 0)) == (0, 0, 255)
    job = served.http.post("/api/v1/jobs", json={"width": 64, "height": 64, "steps": 1, "seed": 5}).json()["id"]
    wait_for_end(served.app, job)
    assert served.http.put(address, json={"job": job, "index": 0}).status_code == 200
    with Image.open(folder / "a.png") as image:
        assert image.size == (64, 64) and "Seed: 5" in image.text["parameters"]
    for body in ({"job": job, "index": 9}, {"job": "nope"}):
        assert served.http.put(address, json=body).status_code == 404
    for body in ({"job": 5}, {"path": "/etc/passwd"}, {"job": job, "path": "x"}):
        assert served.http.put(address, json=body).status_code == 422
    assert served.http.put(address, content=b"<svg/>").status_code == 422


def test_duplicates_are_told_and_made_certain(served: Served, tmp_path: Path):
    folder = tmp_path / "models" / "Lora"
    assert served.http.get("/api/v1/models/duplicates").json() == {"wasted": 0, "groups": []}
    shutil.copy(folder / "people" / "a.safetensors", folder / "copy.safetensors")
    assert served.http.post("/api/v1/models/refresh?kind=lora").json() == {"total": 3}
    found = served.http.get("/api/v1/models/duplicates?kind=lora").json()
    (group,) = found["groups"]
    assert found["wasted"] == group["models"][0]["size"] and not group["certain"]
    hashes = {served.http.post(f"/api/v1/models/{one['id']}/hash").json()["sha256"] for one in group["models"]}
    assert len(hashes) == 1
    assert served.http.get("/api/v1/models/duplicates").json()["groups"][0]["certain"]
    assert (folder / "copy.safetensors").exists()
