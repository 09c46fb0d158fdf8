"""/internal/sysinfo: what a report needs, and nothing that is somebody's own. Canaries are planted everywhere."""

import json
import logging
from pathlib import Path

import pytest

from modules.app import LoadedModel
from modules.runtime import logs
from modules.runtime.device import placement_from
from modules.runtime.flags import described, parse
from modules.runtime.paths import paths_from
from modules.runtime.torch_facts import device_facts
from modules.server.api import create_api
from modules.server.gate import Gate
from modules.server.system_info import Known, as_text, changed, known_of, system_info
from modules.settings.schema import Settings
from tests.jobs.scene import Painter, make_app, submit, wait_for_end
from tests.server.served import Served

USER = "canaryuser"
SECRETS = {
    "password": "canary-password",
    "token": "canary-token-0123456789",
    "hub": "hf_canarycanarycanary",
    "env": "canary-env-value",
    "name": USER,
}
FLAGS = [
    "--gradio-auth",
    f"{USER}:canary-password",
    "--ngrok",
    "canary-token-0123456789",
    "--medvram",
    "--port",
    "7861",
]
FLAGS += ["--use-cpu", "all", "--server-name", "canary.example.org", "--vae-dir", f"/srv/{USER}/canary-vae"]


@pytest.fixture
def known(tmp_path, monkeypatch) -> Known:
    home = tmp_path / "home" / USER
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", USER)
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("HF_TOKEN", SECRETS["env"])
    flags = parse([*FLAGS, "--data-dir", str(home / "my data")])
    settings = Settings().with_overrides(
        {
            "outdir_samples": f"/mnt/{USER}/canary-out",
            "samples_filename_pattern": "canary-pattern",
            "jpeg_quality": 81,
            "civitai_api_key": "canary-civitai-key",
            "model_trees": [f"/srv/trees of {USER}"],
        }
    )
    problems = [
        f"a file could not be used: {home}/my data/models/canary-folder/x.safetensors",
        f"no such file: '/mnt/{USER}/canary-out/picture 1.png' and /opt/canary-folder/thing.bin, see /canary-folder",
        rf"C:\Users\{USER}\canary-folder\y.ckpt and \\server\canary-share\z.ckpt",
        f"token={SECRETS['token']} and {SECRETS['hub']} and {SECRETS['env']} and {SECRETS['password']} of {USER}",
        f"canary-civitai-key was refused for '/srv/trees of {USER}/q.bin'",
        f"/srv/{USER}/canary-vae/vae.pt and file:///home/canary/y.png",
    ]
    loaded = LoadedModel("starter.safetensors", "SD 1.x", 43_000_000, "0123456789")
    return Known(flags, paths_from(flags), settings, device_facts(placement_from(flags)), loaded, "ready: x", problems)


def test_it_tells_what_a_report_needs(known):
    report = system_info(known)
    assert report["versions"]["Easel"] and report["versions"]["torch"] and report["versions"]["gradio"]
    assert report["memory"]["total"] > report["memory"]["easel"] > 0 and report["processor"]["cores"] >= 1
    assert report["device"]["device"] == "cpu" and report["device"]["dtypes"]["unet"] in ("bfloat16", "float32")
    assert report["device"]["attention"] == "sdp"
    sliced = device_facts(placement_from(known.flags), "sub-quadratic")
    assert sliced.attention == "sub-quadratic"
    assert report["checkpoint"]["family"] == "SD 1.x"
    hidden = ("outdir_samples", "samples_filename_pattern", "civitai_api_key", "model_trees")
    assert report["settings"] == {"jpeg_quality": 81, **dict.fromkeys(hidden, "…")}
    words = [word for word in report["flags"] if "…" not in word]
    assert words == ["--port 7861", "--use-cpu all", "--medvram"]
    assert "--gradio-auth …" in report["flags"] and "--data-dir …" in report["flags"]


def test_no_secret_no_path_and_no_name(known, tmp_path):
    text = as_text(system_info(known))
    assert "canary" not in text.replace("canary.example.org", "")  # of that below
    assert "canary.example.org" not in text
    assert str(tmp_path) not in text and str(Path.home()) not in text and "/mnt" not in text and "Users" not in text
    problems = json.loads(text)["problems"]
    assert "<models>/…/x.safetensors" in problems[0] and len(problems) == 6
    assert "…/thing.bin" in problems[1] and "…/z.ckpt" in problems[2]


def test_what_is_said_stays_readable(known):
    sentence = "SDXL failed at 1024x1024 and/or 3.5 GB; see https://example.org/docs/page or `python launch.py install`"
    (told,) = system_info(Known(known.flags, known.paths, known.settings, problems=[sentence]))["problems"]
    assert told == sentence


def test_the_places_in_our_own_code_are_told(known):
    code = f'File "{known.paths.root}/modules/jobs/worker.py", line 206, in _run'
    (told,) = system_info(Known(known.flags, known.paths, known.settings, problems=[code]))["problems"]
    assert told == 'File "<easel>/modules/jobs/worker.py", line 206, in _run'


def test_flags_are_shown_by_kind():
    flags = parse(
        ["--no-half", "--precision", "full", "--use-cpu", "all", "interrogate", "--ckpt-dir", "a", "--port", "0"]
    )
    assert described(flags) == [
        "--port 0",
        "--ckpt-dir …",
        "--use-cpu all interrogate",
        "--no-half",
        "--precision full",
    ]
    assert described(parse([])) == []
    assert described(parse(["--use-cpu", "/home/jane"])) == ["--use-cpu …"]
    assert changed(Settings()) == {}


def test_over_http_with_the_last_problems(tmp_path):
    recent = logs.Recent()
    recent.setFormatter(logs.OneLineFormatter(["canary-of-the-gate"]))

    def fail(image, step):
        raise RuntimeError("the painter broke at /home/canary/brush.py")

    app = make_app(tmp_path, Painter(on_step=fail))
    app.recent_problems = recent.problems
    logging.getLogger().addHandler(recent)
    served = Served(Gate(create_api(app)), app)
    try:
        app.start()
        assert wait_for_end(app, submit(app).id).state == "failed"
        logging.getLogger("test").warning("with canary-of-the-gate and %s", tmp_path / "x.png")
        answer = served.http.get("/internal/sysinfo")
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert "content-disposition" not in answer.headers and answer.headers["cache-control"] == "no-store"
        problems = answer.json()["problems"]
        assert any(one.startswith("job failed: internal error (RuntimeError)") for one in problems)
        assert any("Traceback" in one and "the painter broke at …/brush.py" in one for one in problems)
        assert problems[-1].endswith("with …masked… and <easel>/x.png")
        assert "canary" not in answer.text and str(tmp_path) not in answer.text
        assert answer.json()["device"] is None  # a painter is no torch
        for path in ("/internal/sysinfo-download", "/internal/sysinfo?attachment=1"):
            sent = served.http.get(path).headers["content-disposition"]
            assert sent.startswith('attachment; filename="sysinfo-2') and sent.endswith('.json"')
    finally:
        logging.getLogger().removeHandler(recent)
        served.close()


def test_problems_are_said_once(tmp_path):
    (tmp_path / "config.json").write_text('{"jpeg_quality": "x"}')
    app = make_app(tmp_path)
    told = known_of(app).problems
    assert any("jpeg_quality" in one for one in told)
    app.recent_problems = lambda: [f"12:00:00 WARNING easel: {one}" for one in app.problems]
    again = known_of(app).problems
    assert len(again) == len(app.problems)
    app.store.close()
