"""The lists of /sdapi/v1 in A1111's shapes."""

from modules.prompt.styles import Style, write_styles
from tests.jobs.scene import Painter


def get(served, address):
    answer = served.http.get(f"/sdapi/v1/{address}")
    assert answer.status_code == 200
    return answer.json()


def test_styles_are_those_of_the_users_file(serve, tmp_path):
    served = serve(Painter())
    assert get(served, "prompt-styles") == []
    write_styles(tmp_path / "styles.csv", [Style("one", "a {prompt} b", "bad")])
    assert get(served, "prompt-styles") == [{"name": "one", "prompt": "a {prompt} b", "negative_prompt": "bad"}]
    ask = {"width": 64, "height": 64, "steps": 1, "styles": ["one", "two"]}
    answer = served.http.post("/sdapi/v1/txt2img", json=ask).json()
    assert answer["warnings"] == ["there is no style 'two'"]


def test_scripts_are_those_that_are_here(quick):
    assert get(quick, "scripts") == {
        "txt2img": ["extra options", "refiner", "sampler", "seed"],
        "img2img": ["extra options", "soft inpainting", "refiner", "sampler", "seed"],
    }
    info = get(quick, "script-info")
    assert len(info) == 9 and all(set(one) == {"name", "is_alwayson", "is_img2img", "args"} for one in info)


def test_face_restorers_are_not_here_yet(quick):
    assert get(quick, "face-restorers") == []
