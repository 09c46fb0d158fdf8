"""/sdapi/v1 over a real server, held to what A1111 answered where that is at hand."""

import base64
import io
import json
import threading
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS
from modules.runtime.version import VERSION
from modules.server.fields import TXT2IMG
from tests.jobs.scene import PATIENCE_S, Painter, Pause

ASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1}


def txt2img(served, **fields):
    return served.http.post("/sdapi/v1/txt2img", json={**ASK, **fields})


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def behaviour(golden: Path, name: str) -> dict:
    cases = json.loads((golden / "api_behaviour.json").read_text("utf-8"))
    return next(case for case in cases if case["name"] == name)


def test_the_answer_has_a1111s_fields_in_their_order(serve, golden):
    case = behaviour(golden, "empty_body")
    theirs, their_info = case["response"], json.loads(case["response"]["info"])
    served = serve(Painter())
    answer = served.http.post("/sdapi/v1/txt2img", json=case["sent"]["json"])
    ours = answer.json()
    assert answer.status_code == 200 and list(ours) == list(theirs)
    assert ours["parameters"] == theirs["parameters"] and list(ours["parameters"]) == list(theirs["parameters"])
    info = json.loads(ours["info"])
    assert list(info) == list(their_info)
    for key in (
        "prompt",
        "all_prompts",
        "sampler_name",
        "cfg_scale",
        "steps",
        "width",
        "batch_size",
        "clip_skip",
        "styles",
    ):
        assert info[key] == their_info[key]
    assert info["all_seeds"] == [info["seed"]] and info["subseed"] >= 0


def test_pictures_carry_their_infotext_and_are_not_kept_unless_asked(serve, tmp_path):
    served = serve(Painter())
    answer = txt2img(served, n_iter=2).json()
    info = json.loads(answer["info"])
    assert len(answer["images"]) == 2 and info["index_of_first_image"] == 0 and info["all_seeds"] == [1, 2]
    assert [opened(image).text["parameters"] for image in answer["images"]] == info["infotexts"]
    assert not (tmp_path / "outputs").exists()


def test_saved_batches_begin_with_their_grid(serve, tmp_path):
    served = serve(Painter())
    answer = txt2img(served, batch_size=2, n_iter=2, save_images=True).json()
    info = json.loads(answer["info"])
    assert len(answer["images"]) == 5 and info["index_of_first_image"] == 1 and len(info["infotexts"]) == 5
    assert opened(answer["images"][0]).size == (128, 128)
    assert len(list((tmp_path / "outputs" / "txt2img-images").rglob("*.png"))) == 4
    assert len(list((tmp_path / "outputs" / "txt2img-grids").rglob("grid-*.png"))) == 1
    without = txt2img(served, batch_size=2, save_images=True, do_not_save_grid=True).json()
    assert len(without["images"]) == 2
    hidden = txt2img(served, batch_size=2, save_images=True, override_settings={"return_grid": False}).json()
    assert len(hidden["images"]) == 2
    assert len(list((tmp_path / "outputs" / "txt2img-grids").rglob("grid-*.png"))) == 2


def test_images_are_left_out_where_nobody_wants_them(serve):
    served = serve(Painter())
    answer = txt2img(served, send_images=False).json()
    assert answer["images"] == [] and json.loads(answer["info"])["seed"] == 1


@pytest.mark.parametrize(
    ("fields", "sampler", "schedule"),
    [
        ({}, "Euler", "Automatic"),
        ({"sampler_index": "DDIM"}, "DDIM", "Automatic"),
        ({"sampler_name": "euler A", "sampler_index": "DDIM"}, "Euler a", "Automatic"),
        ({"sampler_name": "k_euler_a"}, "Euler a", "Automatic"),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "Euler karras", "scheduler": "automatic"}, "Euler", "Karras"),
        ({"scheduler": "karras"}, "Euler", "Karras"),
        ({"scheduler": None, "sampler_name": None}, "Euler", "Automatic"),
        ({"scheduler": ""}, "Euler", "Automatic"),
    ],
)
def test_names_of_samplers_old_and_new(quick, fields, sampler, schedule):
    answer = txt2img(quick, **fields)
    assert answer.status_code == 200
    request = quick.app.queue.of_client("sdapi", 1)[0].request
    assert (request.sampler, request.schedule) == (sampler, schedule)


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"sampler_name": "nope"}, 422, "sampler_name"),
        ({"scheduler": "nope"}, 422, "scheduler"),
        ({"sampler_name": 5}, 422, "sampler_name"),
        ({"steps": "x"}, 422, "steps"),
        ({"steps": 0}, 422, "steps"),
        ({"n_iter": 10**6}, 422, "n_iter"),
        ({"batch_size": 1000}, 422, "batch_size"),
        ({"seed": 1.5}, 422, "seed"),
        ({"seed": -5}, 422, "seed"),
        ({"prompt": None}, 422, "prompt"),
        ({"send_images": "no"}, 422, "send_images"),
        ({"script_name": "x/y/z plot"}, 422, "script_name"),
        ({"firstpass_image": "x"}, 422, "firstpass_image"),
        ({"override_settings": {"outdir_txt2img_samples": "/etc"}}, 403, "outdir_txt2img_samples"),
        ({"override_settings": {"api_enable_requests": True}}, 403, "api_enable_requests"),
        ({"override_settings": {"samples_format": "py"}}, 422, "samples_format"),
        ({"override_settings": {"sd_model_checkpoint": "../../x"}}, 404, "override_settings.sd_model_checkpoint"),
        ({"alwayson_scripts": {"x": {"args": []}}}, 422, "alwayson_scripts.x"),
        ({"styles": "x"}, 422, "styles"),
        ({"subseed_strength": 1.5}, 422, "subseed_strength"),
        ({"subseed": 2**64}, 422, "subseed"),
        ({"seed_resize_from_w": 63, "seed_resize_from_h": 64}, 422, "seed_resize_from_w"),
        ({"seed_resize_from_w": 64, "seed_resize_from_h": 4096}, 422, "seed_resize_from_h"),
        ({"tiling": 2}, 422, "tiling"),
        ({"refiner_checkpoint": "x"}, 404, "refiner_checkpoint"),
        ({"refiner_checkpoint": "plain", "refiner_switch_at": 1.5}, 422, "refiner_switch_at"),
        ({"comments": []}, 422, "comments"),
        ({"disable_extra_networks": "no"}, 422, "disable_extra_networks"),
        ({"alwayson_scripts": []}, 422, "alwayson_scripts"),
        ({"eta": -1}, 422, "eta"),
        ({"eta": 10**400}, 422, "eta"),
        ({"s_min_uncond": 10**400}, 422, "s_min_uncond"),
        ({"override_settings": []}, 422, "override_settings"),
        ({"s_churn": "much"}, 422, "s_churn"),
        ({"force_task_id": "../x"}, 422, "force_task_id"),
        ({"force_task_id": "<b>"}, 422, "force_task_id"),
        ({"force_task_id": "x" * 65}, 422, "force_task_id"),
        ({"force_task_id": ""}, 422, "force_task_id"),
        ({"infotext": 7}, 422, "infotext"),
        ({"infotext": "a\nSteps: 1000000000, Sampler: Euler, Seed: 1", "steps": 151}, 422, "steps"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_leaves_no_job(quick, fields, status, field):
    before = quick.app.queue.of_client("sdapi", 1)
    answer = txt2img(quick, **fields)
    assert answer.status_code == status
    assert answer.json()["detail"][0]["field"] == field and len(answer.content) <= 4096
    assert quick.app.queue.of_client("sdapi", 1) == before


NEUTRAL = {
    "styles": [],
    "subseed": 5,
    "subseed_strength": 0.0,
    "restore_faces": False,
    "tiling": False,
    "denoising_strength": 0.7,
    "enable_hr": False,
    "hr_scale": 3,
    "hr_upscaler": "Latent",
    "script_name": "",
    "script_args": [],
    "alwayson_scripts": {},
    "refiner_checkpoint": "",
    "refiner_switch_at": 0.8,
    "comments": {},
    "seed_resize_from_h": 0,
    "s_min_uncond": 0,
}


def test_fields_that_ask_for_nothing_are_taken(quick):
    answer = txt2img(quick, **NEUTRAL)
    assert answer.status_code == 200 and "warnings" not in answer.json()


def test_unknown_names_are_warned_of(quick):
    answer = txt2img(quick, stpes=5, override_settings={"no_such": 1, "samples_log_stdout": True}).json()
    assert answer["warnings"] == [
        "unknown field stpes",
        "unknown setting no_such",
        "the setting samples_log_stdout has no effect yet",
    ]


def test_faces_stay_as_they_are_where_there_is_no_face_restorer(quick):
    assert quick.http.get("/sdapi/v1/face-restorers").json() == []
    answer = txt2img(quick, restore_faces=True)
    assert answer.status_code == 200
    assert answer.json()["warnings"] == ["restore_faces has no effect: there is no face restorer here"]


def test_sides_that_are_no_multiple_of_8_are_cut_as_a1111_does_and_that_is_said(quick, golden):
    assert behaviour(golden, "width_not_multiple")["status"] == 200
    answer = txt2img(quick, width=70, height=1083).json()
    assert answer["warnings"] == [
        "width 70 is no multiple of 8: 64 is used",
        "height 1083 is no multiple of 8: 1080 is used",
    ]
    assert opened(answer["images"][0]).size == (64, 1080)
    assert txt2img(quick, width=63).status_code == 422
    hires = {"enable_hr": True, "hr_resize_x": 100, "hr_resize_y": 96, "denoising_strength": 0.5}
    assert txt2img(quick, **hires).json()["warnings"] == ["hr_resize_x 100 is no multiple of 8: 96 is used"]


def test_sampling_fields_become_settings_of_this_request_only(quick):
    txt2img(quick, s_churn=3, eta=0.5, s_noise=1.05)
    job = quick.app.queue.of_client("sdapi", 1)[0]
    assert {key: job.settings[key] for key in ("s_churn", "s_noise", "eta_ancestral", "eta_ddim")} == {
        "s_churn": 3.0,
        "s_noise": 1.05,
        "eta_ancestral": 0.5,
        "eta_ddim": 0.5,
    }
    assert quick.app.settings.current.s_churn == 0


def test_overrides_that_are_to_stay_become_settings(serve):
    served = serve(Painter())
    wanted = {"sd_model_checkpoint": "plain", "CLIP_stop_at_last_layers": 2}
    txt2img(served, override_settings=wanted)
    assert served.app.settings.current.CLIP_stop_at_last_layers == 1
    answer = txt2img(served, override_settings=wanted, override_settings_restore_afterwards=False)
    assert answer.status_code == 200 and served.app.settings.current.CLIP_stop_at_last_layers == 2
    assert served.app.settings.current.sd_model_checkpoint == served.app.current_checkpoint().title
    refused = txt2img(served, steps=0, override_settings={"CLIP_stop_at_last_layers": 3},
                      override_settings_restore_afterwards=False)  # fmt: skip
    assert refused.status_code == 422 and served.app.settings.current.CLIP_stop_at_last_layers == 2


def test_the_sentence_says_what_the_field_must_be_and_what_came(quick):
    answer = txt2img(quick, width=100000)
    assert answer.json()["error"] == "width: must be at most 2048, got 100000"
    answer = txt2img(quick, prompt="a" * 100_001)
    assert answer.json()["error"] == "prompt: must be at most 100000 characters, got 100001"


def test_an_infotext_fills_what_was_not_sent(quick, golden):
    case = behaviour(golden, "infotext_request")
    answer = quick.http.post("/sdapi/v1/txt2img", json=case["sent"]["json"]).json()
    theirs = case["response"]["parameters"]
    fields = (
        "prompt",
        "negative_prompt",
        "steps",
        "sampler_name",
        "cfg_scale",
        "seed",
        "width",
        "height",
        "override_settings",
    )
    assert {name: answer["parameters"][name] for name in fields} == {name: theirs[name] for name in fields}
    case = behaviour(golden, "infotext_with_override_fields")
    answer = quick.http.post("/sdapi/v1/txt2img", json=case["sent"]["json"]).json()
    theirs = case["response"]["parameters"]
    assert {name: answer["parameters"][name] for name in fields} == {name: theirs[name] for name in fields}


def test_a_task_id_is_one_job(serve):
    served = serve(Painter())
    first = txt2img(served, force_task_id="task-1").json()
    again = txt2img(served, force_task_id="task-1").json()
    assert first["images"] == again["images"]
    assert len(served.app.queue.of_client("sdapi")) == 1
    assert txt2img(served, force_task_id="task-1", steps=3).status_code == 409


def test_interrupt_and_skip_touch_the_running_job_and_no_later_one(serve):
    pause = Pause(at=2)
    served = serve(Painter(pause))
    for _ in range(3):
        assert served.http.post("/sdapi/v1/interrupt").json() == {}
        assert served.http.post("/sdapi/v1/skip").json() is None
    answers = []
    thread = threading.Thread(target=lambda: answers.append(txt2img(served, steps=20, n_iter=3).json()))
    thread.start()
    pause.wait()
    served.http.post("/sdapi/v1/interrupt")
    pause.go.set()
    thread.join(PATIENCE_S)
    assert len(answers[0]["images"]) == 1
    assert len(txt2img(served, n_iter=3).json()["images"]) == 3


def test_progress_in_a1111s_shape(serve, golden):
    idle = behaviour(golden, "progress_idle")["response"]
    pause = Pause(at=2, index=1)
    served = serve(Painter(pause))
    ours = served.http.get("/sdapi/v1/progress").json()
    assert list(ours) == list(idle) and list(ours["state"]) == list(idle["state"])
    assert (ours["progress"], ours["eta_relative"], ours["current_image"]) == (0.0, 0.0, None)
    thread = threading.Thread(target=lambda: txt2img(served, steps=4, n_iter=2))
    thread.start()
    pause.wait()
    ours = served.http.get("/sdapi/v1/progress").json()
    assert ours["state"] | {"job_timestamp": ""} == {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "Batch 2 out of 2",
        "job_count": 2,
        "job_timestamp": "",
        "job_no": 1,
        "sampling_step": 1,
        "sampling_steps": 4,
    }
    assert ours["progress"] == 0.625
    assert opened(ours["current_image"]).format == "PNG"
    assert served.http.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    pause.go.set()
    thread.join(PATIENCE_S)


def test_a_failed_job_is_an_error_with_its_sentence(serve):
    def fail(image, step):
        raise MemoryError

    served = serve(Painter(fail))
    answer = txt2img(served)
    assert answer.status_code == 500 and "not enough memory" in answer.json()["error"]


def test_lists(quick):
    samplers = quick.http.get("/sdapi/v1/samplers").json()
    assert [one["name"] for one in samplers] == [info.name for info in SAMPLER_INFOS]
    assert next(one for one in samplers if one["name"] == "DPM++ 2M") == {
        "name": "DPM++ 2M",
        "aliases": ["k_dpmpp_2m"],
        "options": {"scheduler": "karras"},
    }
    schedulers = quick.http.get("/sdapi/v1/schedulers").json()
    assert [one["label"] for one in schedulers] == [info.label for info in SCHEDULE_INFOS]
    assert set(schedulers[0]) == {"name", "label", "aliases", "default_rho", "need_inner_model"}
    (model,) = quick.http.get("/sdapi/v1/sd-models").json()
    assert set(model) == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert quick.http.post("/sdapi/v1/refresh-checkpoints").json() is None
    memory = quick.http.get("/sdapi/v1/memory").json()
    assert set(memory) == {"ram", "cuda"}


def test_flags_tell_no_secret_and_no_folder(serve, tmp_path):
    served = serve(Painter())
    served.app.flags.api_auth, served.app.flags.gradio_auth = "ann:secret", "bob:secret"
    served.app.flags.ckpt_dir = "/home/ann/models"
    answer = served.http.get("/sdapi/v1/cmd-flags")
    assert answer.json()["api_auth"] is None and answer.json()["data_dir"] is not None
    assert "secret" not in answer.text and "/home/ann" not in answer.text and str(tmp_path) not in answer.text


def test_settings_name_the_checkpoint_in_use_also_where_none_is_chosen_or_the_chosen_one_is_gone(serve):
    served = serve(Painter())
    app = served.app
    assert app.settings.current.sd_model_checkpoint is None
    app.library.hashed(app.current_checkpoint())
    for chosen in (None, "gone.safetensors [0123456789]"):
        app.settings.update({"sd_model_checkpoint": chosen})
        told = served.http.get("/sdapi/v1/options").json()
        (found,) = served.http.get("/sdapi/v1/sd-models").json()
        assert (told["sd_model_checkpoint"], told["sd_checkpoint_hash"]) == (found["title"], found["sha256"])
        assert app.settings.current.sd_model_checkpoint == chosen  # to look changes nothing
    next(iter(app.library.list())).path.unlink()
    app.library.refresh()
    assert served.http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == chosen


def test_all_settings_can_be_sent_back_with_one_of_them_changed(serve):
    served = serve(Painter())
    told = served.http.get("/sdapi/v1/options").json()
    assert {"outdir_samples", "api_enable_requests"} <= set(told)
    answer = served.http.post("/sdapi/v1/options", json=told | {"CLIP_stop_at_last_layers": 2})
    assert (answer.status_code, answer.json()) == (200, None)
    assert served.http.get("/sdapi/v1/options").json() == told | {"CLIP_stop_at_last_layers": 2}
    changed = told | {"outdir_samples": "elsewhere"}
    assert served.http.post("/sdapi/v1/options", json=changed).status_code == 403


def test_settings_are_read_and_changed(serve):
    served = serve(Painter())
    assert served.http.get("/sdapi/v1/options").json()["samples_format"] == "png"
    assert served.http.post("/sdapi/v1/options", json={"samples_format": "webp"}).json() is None
    assert served.http.get("/sdapi/v1/options").json()["samples_format"] == "webp"
    assert served.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "plain"}).status_code == 200
    title = served.http.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    assert title == served.http.get("/sdapi/v1/sd-models").json()[0]["title"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"outdir_samples": "scripts"}, 403),
        ({"jpeg_quality": 50, "outdir_txt2img_samples": "/etc"}, 403),
        ({"disabled_extensions": ["x"]}, 403),
        ({"samples_format": "py"}, 422),
        ({"send_seed": "maybe"}, 422),
        ({"jpeg_quality": 10**30}, 422),
        ({"nope_key": 1}, 422),
        ({"sd_model_checkpoint": "nope"}, 404),
        ({"sd_model_checkpoint": ["x"]}, 422),
    ],
)
def test_settings_that_cannot_be_are_refused_and_change_nothing(quick, body, status):
    before = quick.http.get("/sdapi/v1/options").json()
    assert quick.http.post("/sdapi/v1/options", json=body).status_code == status
    assert quick.http.get("/sdapi/v1/options").json() == before


def test_png_info_reads_what_was_written(quick):
    image = txt2img(quick).json()["images"][0]
    answer = quick.http.post("/sdapi/v1/png-info", json={"image": image}).json()
    assert answer["info"] == "a red circle\nSeed: 1" and answer["items"] == {}
    assert quick.http.post("/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{image}"}).json() == answer


def test_png_info_of_a_measured_picture_is_what_a1111_says(quick, golden):
    theirs = json.loads((golden / "files" / "png_info.json").read_text("utf-8"))
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    chunks.add_text("parameters", theirs["info"])
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    answer = quick.http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(buffer.getvalue()).decode()})
    assert answer.json() == theirs


@pytest.mark.parametrize(
    "image", ["zz", "", None, 5, [], "http://127.0.0.1/x.png", "file:///etc/passwd", "%%%", "/etc/passwd"]
)
def test_what_is_no_picture_is_refused(quick, image):
    answer = quick.http.post("/sdapi/v1/png-info", json={"image": image})
    assert answer.status_code == 422 and answer.json()["detail"][0]["field"] == "image"


def test_addresses_that_are_not_there(quick):
    assert quick.http.get("/sdapi/v1/nope").json()["detail"] == "Not Found"
    assert quick.http.get("/sdapi/v1/txt2img").status_code == 405
    assert quick.http.get("/docs").status_code == 404


def test_every_field_of_a1111_has_its_default(golden):
    assert {name: field.default for name, field in TXT2IMG.items()} == behaviour(golden, "empty_body")["response"][
        "parameters"
    ] | {
        "steps": 50,
        "width": 512,
        "height": 512,
    }


@pytest.mark.parametrize(
    "prompt", ["a\x00b", "\x1b[31mred\r\nnext", "\u202eleft", "e\u0301" * 5000, "🧀" * 300, "画" * 10_000]
)
def test_strange_prompts_come_back_as_they_were(quick, prompt):
    answer = txt2img(quick, prompt=prompt).json()
    info = json.loads(answer["info"])
    assert info["prompt"] == prompt
    found = quick.http.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
    assert found["info"] == info["infotexts"][0]


def test_the_version_is_the_one_that_infotexts_name(quick):
    assert json.loads(txt2img(quick).json()["info"])["version"] == f"easel-v{VERSION}"
