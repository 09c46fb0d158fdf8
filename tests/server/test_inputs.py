"""/api/v1/inputs: pictures that requests start from, sent and shown."""

import io

import pytest
from PIL import Image

from modules.server import api


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from modules.server.api import create_api
    from modules.server.gate import Gate
    from tests.jobs.scene import make_app
    from tests.server.served import Served

    app = make_app(tmp_path_factory.mktemp("inputs"))
    served = Served(Gate(create_api(app)), app)
    yield served
    served.close()


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 8), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_kept_and_shown(served, kind):
    answer = served.http.post("/api/v1/inputs", content=picture(kind), headers={"content-type": f"image/{kind}"})
    assert answer.status_code == 200
    kept = answer.json()
    assert (kept["width"], kept["height"]) == (12, 8) and served.app.inputs.get(kept["id"]).size == (12, 8)
    shown = served.http.get(f"/api/v1/inputs/{kept['id']}")
    assert shown.headers["content-type"] == "image/png" and "sandbox" in shown.headers["content-security-policy"]
    assert Image.open(io.BytesIO(shown.content)).size == (12, 8)


def test_a_form_holds_it_too(served):
    data = picture(mode="RGBA")
    bare = served.http.post("/api/v1/inputs", content=data).json()
    form = served.http.post("/api/v1/inputs", files={"file": ("../../x.png", data, "image/png")})
    assert form.json() == bare
    assert served.app.inputs.get(bare["id"]).mode == "RGBA"


@pytest.mark.parametrize(
    ("send", "status", "says"),
    [
        ({"content": b""}, 422, "empty"),
        ({"content": b"GIF89a"}, 422, "this is a GIF; only PNG, JPEG, WebP and AVIF are taken"),
        ({"content": picture()[:-20]}, 422, "truncated or corrupt"),
        ({"content": b"<svg onload=alert(1)>"}, 422, "an SVG"),
        ({"data": {"file": "text"}, "files": {}}, 422, "this is no picture"),
        ({"files": [("a", ("a", b"x")), ("b", ("b", b"y"))]}, 400, "the form cannot be read"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "the form cannot be read"),
        ({"files": {"a": (None, "text")}}, 422, "the form holds no file"),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "compressed"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_sentence(served, send, status, says):
    answer = served.http.post("/api/v1/inputs", **send)
    assert (answer.status_code, says in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("id", ["0" * 64, "x", "..%2f..%2fconfig.json", "A" * 64])
def test_an_unknown_picture_is_404(served, id):
    assert served.http.get(f"/api/v1/inputs/{id}").status_code == 404


def test_a_picture_may_be_only_so_large(served, monkeypatch):
    monkeypatch.setattr(api, "MAX_BYTES", 2**20)
    answer = served.http.post("/api/v1/inputs", content=bytes(2**20 + 1))
    assert (answer.status_code, "larger than 1 MiB" in answer.text) == (413, True)
