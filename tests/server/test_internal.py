"""/internal: what clients of A1111's page ask while they wait."""

import base64
import io
import threading

import pytest
from PIL import Image

from modules.server.generate import CLIENT
from tests.jobs.scene import PATIENCE_S, Painter, Pause, request, submit, wait_for_end

ASK = {"width": 64, "height": 64, "steps": 4, "seed": 1}


def progress(served, id, **fields):
    answer = served.http.post("/internal/progress", json={"id_task": id, **fields})
    assert answer.status_code == 200
    return answer.json()


def test_it_is_there(quick):
    assert quick.http.get("/internal/ping").json() == {}
    assert quick.http.get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}
    hint = quick.http.get("/internal/quicksettings-hint").json()
    assert "CLIP_stop_at_last_layers" in {one["name"] for one in hint}


def test_a_task_from_its_queue_to_its_end(serve):
    pause = Pause(at=3)
    served = serve(Painter(pause))
    page_job = submit(served.app, steps=4)  # somebody's page is first
    pause.wait()
    mine = served.app.queue.submit(request(), served.app.settings.current, "api", CLIENT, "task:mine")
    assert served.http.get("/internal/pending-tasks").json() == {"size": 1, "tasks": ["mine"]}
    waiting = progress(served, "mine")
    assert waiting["queued"] and not waiting["active"] and waiting["textinfo"] == "In queue: 1/1"
    assert progress(served, f"task({page_job.id})")["active"] is False  # another's job
    pause.go.set()
    wait_for_end(served.app, mine.id)
    assert progress(served, "mine")["completed"]


def test_a_running_task_has_progress_and_a_preview(serve):
    pause = Pause(at=3)
    served = serve(Painter(pause))
    served.app.worker.somebody_polls()
    thread = threading.Thread(target=lambda: served.http.post("/sdapi/v1/txt2img", json=ASK))
    thread.start()
    pause.wait()
    (id,) = served.http.get("/internal/pending-tasks").json()["tasks"]
    now = progress(served, id)
    assert now["active"] and now["progress"] == 0.5 and not now["queued"]
    head, _, data = now["live_preview"].partition(",")
    assert head == "data:image/png;base64" and Image.open(io.BytesIO(base64.b64decode(data))).format == "PNG"
    again = progress(served, id, id_live_preview=now["id_live_preview"])
    assert again["live_preview"] is None and again["id_live_preview"] == now["id_live_preview"]
    assert progress(served, id, live_preview=False)["live_preview"] is None
    pause.go.set()
    thread.join(PATIENCE_S)
    assert progress(served, id)["completed"]


def test_an_unknown_task_is_neither(quick):
    assert progress(quick, "never-heard-of") == {
        "active": False,
        "queued": False,
        "completed": False,
        "progress": None,
        "eta": None,
        "live_preview": None,
        "id_live_preview": -1,
        "textinfo": "Waiting...",
    }


@pytest.mark.parametrize("body", [{}, {"id_task": 5}, {"id_task": "../x"}, {"id_task": "x", "id_live_preview": "a"}])
def test_what_is_no_task_is_refused(quick, body):
    assert quick.http.post("/internal/progress", json=body).status_code == 422


def test_nothing_is_pending_after_a_refused_picture(quick):
    answer = quick.http.post("/sdapi/v1/img2img", json={"init_images": ["zzzz"], "force_task_id": "bad"})
    assert answer.status_code == 422
    assert quick.http.get("/internal/pending-tasks").json()["size"] == 0
