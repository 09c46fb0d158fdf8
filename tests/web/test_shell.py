"""The document and the files around Gradio: what is served, and what is not."""

import json
import re

import pytest

from modules.web import preload, shell

GRADIO = """<html><head><script>window.gradio_config = {"theme_hash":"abc123","x":"</scr"};</script>
<script>window.gradio_api_info = {};</script>
<script type="module" crossorigin src="./assets/index-A.js"></script>
<link rel="stylesheet" crossorigin href="./assets/index-B.css"></head></html>"""


def document(data: dict[str, object] | None = None, nonce: str = "n0nce") -> str:
    return shell.compose(shell.gradio_parts(GRADIO), data or {}, nonce)


def test_every_place_of_the_frame_is_filled() -> None:
    page = document()
    assert "‹" not in page and "›" not in page
    assert 'src="./assets/index-A.js"' in page and 'href="theme.css?v=abc123"' in page


def test_every_inline_script_carries_the_nonce() -> None:
    scripts = re.findall(r"<script([^>]*)>", document())
    inline = [one for one in scripts if "src=" not in one and "application/json" not in one]
    assert inline and all('nonce="n0nce"' in one for one in inline)


def test_data_cannot_end_its_script() -> None:
    data = {"checkpoints": {"</script><script>alert(1)</script>": {}}}
    page = document(data)
    assert "<script>alert" not in page
    written = re.search(r'id="easel-data">(.*?)</script>', page, re.S)
    assert written and json.loads(written[1]) == data


def test_nothing_in_the_document_points_elsewhere() -> None:
    page = document().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"""(?:src|href)=["'](?!data:)(?:https?:)?//""", page) == []
    assert "url(http" not in page and "@import" not in page


def test_a_changed_gradio_is_found_at_once() -> None:
    with pytest.raises(RuntimeError, match="has changed"):
        shell.gradio_parts("<html></html>")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/easel/abc/main.js", 200),
        ("/easel/abc/../main.js", 404),
        ("/easel/abc/page.py", 404),
        ("/easel/main.js", 404),
        ("/assets/..", 404),
        ("/assets/.", 404),
        ("/assets/no-such-file.js", 404),
    ],
)
def test_files_go_by_name_alone(path: str, status: int) -> None:
    assert shell.static(path).status_code == status


def test_scripts_have_their_type_and_a_long_life() -> None:
    answer = shell.static("/easel/abc/main.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/login", "/gradio_api/run/x"])
def test_only_the_doors_that_the_page_needs_are_open(path: str) -> None:
    assert not shell.ALLOWED.fullmatch(path)
    assert shell.ALLOWED.fullmatch("/gradio_api/run/predict")


def test_what_is_preloaded_exists() -> None:
    names = preload.assets()
    assert len(names) > 30
    assert all((preload.ASSETS / name).is_file() for name in names)
    assert len(names) == len(set(names))
