"""What may be said in public: paths, names and secrets are found in sentences, and sentences stay sentences."""

from pathlib import Path

import pytest

from modules.runtime.private import Scrubber

SCRUBBER = Scrubber({Path("/srv/easel"): "<easel>", Path("/srv/easel data"): "<data>"}, ["a-secret-value"], {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /mnt/jane/x.ckpt: gone", "cannot read …/x.ckpt: gone"),
        ("cannot read /mnt/jane", "cannot read …"),
        ("'/mnt/jane doe/my models/x.ckpt' is damaged", "'…/x.ckpt' is damaged"),
        ("/mnt/jane doe/my models/x.ckpt", "…/x.ckpt"),
        (r"C:\Users\jane doe\Desktop\x.ckpt: bad", "…/x.ckpt: bad"),
        (r"'C:\\Users\\jane\\x.ckpt' is missing", "'…/x.ckpt' is missing"),
        ("D:/jane/x.ckpt", "…/x.ckpt"),
        (r"\\nas\jane\x.ckpt", "…/x.ckpt"),
        ("file:///mnt/jane/x.png", "…/x.png"),
        ("/srv/easel data/models/jane/x.ckpt", "<data>/…/x.ckpt"),
        ("/srv/easel data/config.json", "<data>/config.json"),
        ("/srv/easel/modules/jobs/worker.py", "<easel>/modules/jobs/worker.py"),
        ("/srv/easel/models/jane/x.ckpt", "<easel>/…/x.ckpt"),
        ("it is a-secret-value, or hf_abcdefghijkl", "it is …masked…, or …masked…"),
    ],
)
def test_what_is_hidden(text, told):
    assert SCRUBBER(text) == told


@pytest.mark.parametrize(
    "text",
    ["12:30:05 WARNING modules.jobs.worker: 1024x1024 and/or 3.5 GB", "E: no", "ratio 1:2 / 3", "lora:foo/bar",
     "see https://example.org/docs/page", "N/A", "prompt (a:1.2), [b|c]", "<lora:x:0.5>"],
)  # fmt: skip
def test_what_stays(text):
    assert SCRUBBER(text) == text


def test_secrets_of_the_environment_are_found_by_their_names():
    scrubber = Scrubber({}, (), {"CIVITAI_API_KEY": "0123456789", "MODE": "ordinary-word", "AUTH": "x"})
    assert scrubber("0123456789 in ordinary-word x") == "…masked… in ordinary-word x"


def test_the_users_name_is_found_as_a_word(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/jane")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "jane")
    scrubber = Scrubber({}, (), {})
    assert scrubber("jane made janeway, at /srv/people/jane/x.png") == "… made janeway, at <home>/x.png"
