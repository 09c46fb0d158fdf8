"""/api/v1 over a real server: requests good and bad, events, pictures, and what clients may not see."""

import json
import threading
from collections.abc import Iterator

import pytest

from modules.server.errors import MOST_DETAILS
from tests.jobs.scene import PATIENCE_S, Painter, Pause, wait_for_end, wait_for_pictures

ASK = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3}


def messages(response) -> Iterator[dict]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_job_from_request_to_picture(serve):
    served = serve(Painter())
    answer = served.http.post("/api/v1/jobs", json={**ASK, "seed": 9}, headers={"x-easel-client": "tab-1"})
    assert answer.status_code == 202
    job = answer.json()
    wait_for_end(served.app, job["id"])
    found = served.http.get(f"/api/v1/jobs/{job['id']}").json()
    assert (found["state"], found["position"], found["error"]) == ("done", None, None)
    (image,) = found["images"]
    assert image["path"].startswith("outputs/txt2img-images/") and image["seed"] == 9
    picture = served.http.get(image["url"])
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    assert "immutable" in picture.headers["cache-control"]
    assert "sandbox" in picture.headers["content-security-policy"]
    assert served.http.get(f"/api/v1/jobs/{job['id']}/images/1").status_code == 404
    assert [one["id"] for one in served.http.get("/api/v1/jobs?client=tab-1").json()] == [job["id"]]
    assert served.http.get("/api/v1/jobs?client=tab-2").json() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 100000), ("width", 10**30), ("width", 0), ("width", -64), ("width", 513), ("steps", -1), ("steps", 0),
     ("steps", 151), ("steps", 10**9), ("steps", True), ("steps", "20"), ("steps", 20.5), ("seed", 2**64), ("seed", -2),
     ("seed", "abc"), ("seed", 1.5), ("batch_size", 1000), ("batch_count", 10**6), ("sampler", "nope"),
     ("schedule", "nope"), ("stpes", 5), ("prompt", "x" * 100_001), ("prompt", 5), ("cfg_scale", "nan"),
     ("cfg_scale", True), ("overrides", []), ("steps", 10**4000), ("checkpoint", 7)],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_value_and_leaves_no_job(served, field, value):
    body = json.dumps({**ASK, field: value if value != 10**4000 else None})
    if value == 10**4000:
        body = body.replace('"steps": null', '"steps": 1' + "0" * 4000)
    answer = served.http.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.content) <= 4096
    found = answer.json()
    assert found["error"] and found["detail"][0]["field"] == field and "message" in found["detail"][0]
    assert served.http.get("/api/v1/jobs").json() == []


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for refusals, which leave nothing behind."""
    from modules.server.api import create_api
    from modules.server.gate import Gate
    from tests.jobs.scene import make_app
    from tests.server.served import Served

    app = make_app(tmp_path_factory.mktemp("data"), Painter())
    app.start()
    one = Served(Gate(create_api(app)), app)
    yield one
    one.close()


def test_the_description_for_machines_names_every_operation_once(served):
    paths = served.http.get("/openapi.json").json()["paths"]
    names = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert "/api/v1/jobs" in paths and len(names) == len(set(names))
    body = paths["/sdapi/v1/img2img"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["denoising_strength"] == {"type": "number", "default": 0.75}
    assert body["properties"]["styles"] == {"type": ["array", "null"], "items": {"type": "string"}}


def test_limits_are_told(served):
    detail = served.http.post("/api/v1/jobs", json={**ASK, "width": 100000}).json()["detail"]
    assert detail[0]["limit"] == 2048 and detail[0]["value"] == 100000
    many = served.http.post("/api/v1/jobs", json={f"wrong{n}": "x" * 1000 for n in range(500)})
    assert len(many.json()["detail"]) <= MOST_DETAILS and len(many.content) <= 4096
    product = served.http.post(
        "/api/v1/jobs", json={"width": 2048, "height": 2048, "steps": 150, "batch_count": 100, "batch_size": 8}
    )
    assert product.status_code == 422 and "width × height × steps × images" in product.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"cfg_scale": NaN}', 422, "cfg_scale"),
        (b'{"cfg_scale": Infinity}', 422, "cfg_scale"),
        (b'{"cfg_scale": -Infinity}', 422, "cfg_scale"),
        (b'{"cfg_scale": 1e999}', 422, "cfg_scale"),
        (b'{"overrides": {"a": [1, NaN]}}', 422, "overrides.a[1]"),
        (b'{"steps": 1' + b"0" * 5000 + b"}", 400, "digits"),
        (b'{"overrides": ' + b'{"a":' * 300 + b"1" + b"}" * 301, 400, "nested"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"prompt": "\xff\xfe"}', 400, "UTF-8"),
        (b'{"prompt": "\xed\xa0\x80"}', 400, "UTF-8"),
        (b'{"prompt": "\\ud800"}', 422, "prompt"),
        (b'{"\\ud800": 1}', 422, "surrogate"),
        (b"{", 400, "JSON"),
        (b'"text"', 422, "object"),
        (b"[]", 422, "object"),
        (b"null", 422, "object"),
    ],
)
def test_hostile_json_is_a_small_4xx(served, body, status, says):
    answer = served.http.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert says in answer.json()["error"] and len(answer.content) <= 4096
    assert served.http.get("/api/v1/jobs").json() == []


@pytest.mark.parametrize(
    "kind", ["text/plain", None, "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_what_a_foreign_form_could_send_is_not_executed(served, kind):
    headers = {"content-type": kind} if kind else {}
    assert served.http.post("/api/v1/jobs", content=json.dumps(ASK), headers=headers).status_code == 415
    assert served.http.get("/api/v1/jobs").json() == []


def test_bodies_have_a_limit(served):
    huge = b'{"prompt": "' + b"x" * (5 * 2**20) + b'"}'
    assert (
        served.http.post("/api/v1/jobs", content=huge, headers={"content-type": "application/json"}).status_code == 413
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_other_unicode_encodings_are_read(serve, encoding):
    served = serve(Painter())
    body = json.dumps({**ASK, "prompt": "ein Käse 🧀"}, ensure_ascii=False).encode(encoding)
    answer = served.http.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 202
    assert served.app.queue.get(answer.json()["id"]).request.prompt == "ein Käse 🧀"
    wait_for_end(served.app, answer.json()["id"])


def test_no_get_changes_anything(served):
    for path in ("/api/v1/jobs/x/interrupt", "/sdapi/v1/txt2img", "/sdapi/v1/interrupt", "/sdapi/v1/skip"):
        assert served.http.get(path).status_code in (404, 405)


@pytest.mark.parametrize("id", ["nope", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a" * 5000, "%00", "C:%5Cx", "~"])
@pytest.mark.parametrize("rest", ["", "/images/0", "/events"])
def test_an_unknown_job_is_the_same_404_whatever_its_name(served, id, rest):
    answer = served.http.get(f"/api/v1/jobs/{id}{rest}")
    assert answer.status_code == 404 and len(answer.content) < 300


@pytest.mark.parametrize("index", ["-1", "99", "x", "1e9", "..", "9" * 30])
def test_an_unknown_picture_is_4xx(served, index):
    answer = served.http.get(f"/api/v1/jobs/nope/images/{index}")
    assert answer.status_code in (404, 422) and len(answer.content) < 4096


@pytest.mark.parametrize("client", ["", "a b", "x" * 65, "<script>", "../x"])
def test_a_client_has_a_plain_name(served, client):
    assert served.http.get("/api/v1/events", params={"client": client}).status_code == 422


def test_the_same_key_is_the_same_job_and_another_body_a_conflict(serve):
    pause = Pause()
    served = serve(Painter(pause))
    ids = []

    def send() -> None:
        headers = {"idempotency-key": "one click"[:3]}
        ids.append(served.http.post("/api/v1/jobs", json=ASK, headers=headers).json()["id"])

    threads = [threading.Thread(target=send) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(ids) == 50 and len(set(ids)) == 1
    other = served.http.post("/api/v1/jobs", json={**ASK, "steps": 4}, headers={"idempotency-key": "one"})
    assert other.status_code == 409
    pause.go.set()
    wait_for_end(served.app, ids[0])


def test_interrupt_skip_and_cancel_answer_in_every_state(serve):
    pause = Pause()
    served = serve(Painter(pause))
    first, second = (served.http.post("/api/v1/jobs", json=ASK).json()["id"] for _ in range(2))
    pause.wait()
    assert served.http.post(f"/api/v1/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert served.http.post(f"/api/v1/jobs/{first}/interrupt").json()["state"] == "running"
    pause.go.set()
    assert wait_for_end(served.app, first).state == "interrupted"
    for action in ("interrupt", "skip", "cancel"):
        assert served.http.post(f"/api/v1/jobs/{first}/{action}").json()["state"] == "interrupted"
    assert served.http.post(f"/api/v1/jobs/{first}/explode").status_code == 404


def test_a_tab_hears_of_its_own_jobs_from_queue_to_picture(serve):
    pause = Pause(at=2)
    served = serve(Painter(pause))
    with served.http.stream("GET", "/api/v1/events?client=mine") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = messages(stream)
        assert next(events)["type"] == "model"
        foreign = served.http.post("/api/v1/jobs", json=ASK, headers={"x-easel-client": "other"}).json()["id"]
        mine = served.http.post(
            "/api/v1/jobs", json={**ASK, "batch_count": 2}, headers={"x-easel-client": "mine"}
        ).json()["id"]
        pause.wait()
        pause.go.set()
        heard = []
        for event in events:
            heard.append(event)
            if event["type"] == "job" and event["state"] == "done":
                break
    assert not [event for event in heard if event.get("job") == foreign]
    own = [event for event in heard if event.get("job") == mine]
    assert [event["state"] for event in own if event["type"] == "job"][:2] == ["queued", "running"] or (
        own[0]["state"] == "queued"
    )
    assert own[-1] == {"type": "job", "job": mine, "state": "done", "position": None, "error": None, "images": 2}
    images = [event for event in own if event["type"] == "image"]
    assert [image["index"] for image in images] == [0, 1]
    assert set(images[0]) >= {"url", "infotext", "seed", "path", "warning"}
    steps = [event for event in own if event["type"] == "progress"]
    wanted = {"phase", "batch", "batches", "step", "steps", "progress", "eta_s", "elapsed_s", "waiting"}
    assert all(set(step) >= wanted for step in steps)
    assert [step["progress"] for step in steps] == sorted(step["progress"] for step in steps)
    previews = [event for event in own if event["type"] == "preview"]
    assert previews and previews[0]["image"].startswith("data:image/jpeg;base64,")
    assert (previews[0]["width"], previews[0]["height"]) == (64, 64)


def test_a_page_that_is_loaded_again_finds_its_run(serve):
    pause = Pause(at=2, index=1)
    served = serve(Painter(pause))
    id = served.http.post("/api/v1/jobs", json={**ASK, "batch_count": 2}, headers={"x-easel-client": "mine"}).json()[
        "id"
    ]
    pause.wait()
    wait_for_pictures(served.app, id, 1)  # it is kept beside the sampling of the next
    with served.http.stream("GET", "/api/v1/events?client=mine") as stream:
        events = messages(stream)
        snapshot = [next(events) for _ in range(3)]
    assert [event["type"] for event in snapshot] == ["model", "image", "job"]
    assert snapshot[2] == {"type": "job", "job": id, "state": "running", "position": 0, "error": None, "images": 1}
    pause.go.set()
    wait_for_end(served.app, id)


def test_the_events_of_one_job_end_with_it(serve):
    served = serve(Painter())
    id = served.http.post("/api/v1/jobs", json=ASK).json()["id"]
    with served.http.stream("GET", f"/api/v1/jobs/{id}/events") as stream:
        found = list(messages(stream))
    assert found[-1]["state"] == "done"
    with served.http.stream("GET", f"/api/v1/jobs/{id}/events") as stream:
        assert [event["type"] for event in messages(stream)] == ["image", "job"]


def test_status_checkpoints_and_tokens(serve):
    served = serve(Painter())
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.head("/health").status_code == 200
    status = served.http.get("/api/v1/status").json()
    assert status["model"]["state"] in ("starting", "loading", "ready") and status["problems"] == []
    assert served.http.get("/api/v1/checkpoints").json()[0]["name"] == "plain"
    assert served.http.post("/api/v1/tokens", json={"text": "a photo of a cat"}).json() == {"tokens": 5, "room": 75}
    assert served.http.post("/api/v1/tokens", json={"text": 5}).status_code == 422


def test_a_checkpoint_tells_what_it_was_made_for(serve):
    served = serve(Painter())
    advice = served.http.get("/api/v1/checkpoints/recommended", params={"checkpoint": "plain"}).json()
    assert set(advice) == {"family", "width", "height", "sampler", "schedule", "steps", "cfg_scale", "why"}
    missing = served.http.get("/api/v1/checkpoints/recommended", params={"checkpoint": "no such"})
    assert missing.status_code == 404 and "no such" in missing.text
    assert served.http.get("/api/v1/checkpoints/recommended").status_code == 422


def test_an_error_in_a_route_is_an_id(serve, monkeypatch, caplog):
    served = serve(Painter())

    def broken():
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(served.app.queue, "waiting", broken)
    answer = served.http.get("/api/v1/status")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert any(answer.json()["id"] in record.getMessage() for record in caplog.records)
    assert len([record for record in caplog.records if record.exc_info]) == 1
    monkeypatch.undo()


def test_nothing_heavy_is_imported_by_server_and_app():
    import subprocess
    import sys

    script = (
        "import sys, modules.app, modules.server.api, modules.server.gate; print([n for n in ('torch', 'transformers', "
    )
    script += "'diffusers', 'gradio', 'numpy.random') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() in ("[]", "['numpy.random']"), found.stderr


def test_what_a_request_names_has_to_be_there(quick):
    parts = {
        "init": {"init": {"images": ["a" * 64]}},
        "hires.upscaler": {"hires": {"upscaler": "Enormous"}},
        "refiner.checkpoint": {"refiner": {"checkpoint": "nope"}},
    }
    before = quick.app.queue.waiting()
    for field, part in parts.items():
        answer = quick.http.post("/api/v1/jobs", json={**ASK, **part}, headers={"x-easel-client": "names"})
        assert answer.status_code == 404 and answer.json()["detail"][0]["field"] == field, answer.text
    assert quick.http.get("/api/v1/jobs?client=names").json() == [] and quick.app.queue.waiting() == before
