"""The lists of /sdapi/v1 in A1111's shapes."""

import json
import shutil
import struct

from modules.prompt.styles import Style, write_styles
from tests.golden import golden as golden
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
    write_styles(tmp_path / "styles.csv", [Style("many", "{prompt} " * 1000)])
    refused = served.http.post("/sdapi/v1/txt2img", json={**ask, "prompt": "a cat", "styles": ["many"] * 3})
    assert refused.status_code == 422 and refused.json()["detail"][0]["field"] == "styles"


def test_scripts_are_those_that_are_here(quick):
    assert get(quick, "scripts") == {
        "txt2img": ["extra options", "refiner", "sampler", "seed"],
        "img2img": ["extra options", "soft inpainting", "refiner", "sampler", "seed", "loopback", "sd upscale"],
    }
    info = get(quick, "script-info")
    assert len(info) == 11 and all(set(one) == {"name", "is_alwayson", "is_img2img", "args"} for one in info)


def test_face_restorers_are_not_here_yet(quick):
    assert get(quick, "face-restorers") == []


def test_latent_upscale_modes_are_a1111s(quick):
    assert [one["name"] for one in get(quick, "latent-upscale-modes")][:2] == ["Latent", "Latent (antialiased)"]


def test_upscalers_are_the_plain_ones_and_the_networks_that_can_be_used(serve, tmp_path):
    safetensors(
        tmp_path / "models" / "RealESRGAN" / "RealESRGAN_x4plus.safetensors",
        {"conv_first.weight": (1, 3), "conv_last.weight": (1, 1), "body.0.rdb1.conv1.weight": (1, 1),
         "conv_up1.weight": (1, 1), "conv_up2.weight": (1, 1)},
    )  # fmt: skip
    safetensors(tmp_path / "models" / "ESRGAN" / "odd.safetensors", {"w": (1, 1)})
    served = serve(Painter())
    found = get(served, "upscalers")
    assert [one["name"] for one in found] == ["None", "Lanczos", "Nearest", "R-ESRGAN 4x+"]
    assert found[0] == {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    assert [one["name"] for one in get(served, "realesrgan-models")] == ["R-ESRGAN 4x+"]
    ask = {"width": 64, "height": 64, "steps": 1, "enable_hr": True, "denoising_strength": 0.5}
    for name in ("Lanczos", "Latent", "R-ESRGAN 4x+"):
        assert served.http.post("/sdapi/v1/txt2img", json={**ask, "hr_upscaler": name}).status_code == 200
    refused = served.http.post("/sdapi/v1/txt2img", json={**ask, "hr_upscaler": "Lancos"})
    assert refused.status_code == 404 and refused.json()["detail"][0]["field"] == "hr_upscaler"
    assert "did you mean 'Lanczos'?" in refused.json()["error"]


def test_a_checkpoint_is_unloaded_and_loaded_again(serve):
    painter = Painter()
    served = serve(painter)
    ask = {"width": 64, "height": 64, "steps": 1}
    assert served.http.post("/sdapi/v1/txt2img", json=ask).status_code == 200
    loaded = len(painter.loaded)
    assert served.http.post("/sdapi/v1/unload-checkpoint").json() == {}
    assert painter.loaded[loaded:] == [""]
    assert served.http.post("/sdapi/v1/unload-checkpoint").json() == {}
    assert served.http.post("/sdapi/v1/txt2img", json=ask).status_code == 200
    assert painter.loaded[-1] == "plain.safetensors"
    served.http.post("/sdapi/v1/unload-checkpoint")
    assert served.http.post("/sdapi/v1/reload-checkpoint").json() == {}
    assert served.http.post("/sdapi/v1/txt2img", json=ask).status_code == 200


def test_vaes_are_listed_and_known_by_name(serve, tmp_path):
    served = serve(Painter())
    assert get(served, "sd-vae") == []
    safetensors(tmp_path / "models" / "VAE" / "fine.safetensors", {"w": (1, 1)})
    assert served.http.post("/sdapi/v1/refresh-vae").json() is None
    assert get(served, "sd-vae") == [
        {"model_name": "fine.safetensors", "filename": str(tmp_path / "models" / "VAE" / "fine.safetensors")}
    ]
    assert served.http.post("/sdapi/v1/options", json={"sd_vae": "fine.safetensors"}).status_code == 200
    refused = served.http.post("/sdapi/v1/options", json={"sd_vae": "fin.safetensors"})
    assert refused.status_code == 404 and "nearest: fine.safetensors" in refused.json()["error"]
    assert get(served, "options")["sd_vae"] == "fine.safetensors"
    assert served.http.post("/sdapi/v1/options", json={"sd_vae": "None"}).status_code == 200


def safetensors(path, tensors, metadata=None):
    """`tensors`: {name: shape}, all zeros."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def test_loras_have_their_metadata(serve, tmp_path):
    meta = {"ss_output_name": "pretty", "ss_tag_frequency": '{"a": {"cat": 3}}', "ssmd_cover_images": "[…]", "x": "{"}
    safetensors(tmp_path / "models" / "Lora" / "sub" / "ugly.safetensors", {"w": (2, 2)}, meta)
    served = serve(Painter())
    (lora,) = get(served, "loras")
    assert (lora["name"], lora["alias"], lora["path"][-16:]) == ("ugly", "pretty", "ugly.safetensors")
    assert lora["metadata"] == {"ss_output_name": "pretty", "ss_tag_frequency": {"a": {"cat": 3}}, "x": "{"}
    card = served.http.get("/sd_extra_networks/metadata", params={"page": "lora", "item": "ugly"}).json()
    assert json.loads(card["metadata"]) == lora["metadata"]
    for page, item in (("lora", "../x"), ("checkpoints", "plain"), ("", "")):
        assert served.http.get("/sd_extra_networks/metadata", params={"page": page, "item": item}).json() == {}
    safetensors(tmp_path / "models" / "Lora" / "new.safetensors", {"w": (2, 2)})
    assert len(get(served, "loras")) == 1
    assert served.http.post("/sdapi/v1/refresh-loras").json() is None
    assert len(get(served, "loras")) == 2


def test_hypernetworks_and_embeddings(serve, golden, tmp_path):
    models = golden / "models"
    (tmp_path / "embeddings").mkdir()
    for name in ("tinyemb_pt.pt", "tinyemb_st.safetensors"):
        shutil.copy(models / name, tmp_path / "embeddings")
    (tmp_path / "models" / "hypernetworks").mkdir(parents=True)
    shutil.copy(models / "tinyhyper.pt", tmp_path / "models" / "hypernetworks")
    safetensors(tmp_path / "embeddings" / "wide.safetensors", {"emb_params": (2, 1024)})
    (tmp_path / "embeddings" / "broken.pt").write_bytes(b"<html>")
    safetensors(
        tmp_path / "models" / "Stable-diffusion" / "plain.safetensors",
        {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 64)},
    )
    served = serve(Painter())
    (hyper,) = get(served, "hypernetworks")
    assert hyper == {"name": "tinyhyper", "path": str(tmp_path / "models" / "hypernetworks" / "tinyhyper.pt")}
    found = get(served, "embeddings")
    assert set(found["loaded"]) == {"tinyemb_pt", "tinyemb_st"}
    assert set(found["loaded"]["tinyemb_st"]) == {"step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"}
    assert found["loaded"]["tinyemb_st"]["shape"] == 64 and found["loaded"]["tinyemb_st"]["vectors"] >= 1
    assert "1024 numbers wide" in found["skipped"]["wide"]["reason"]
    assert "broken.pt" in found["skipped"]["broken"]["reason"]
    (tmp_path / "embeddings" / "tinyemb_pt.pt").unlink()
    assert served.http.post("/sdapi/v1/refresh-embeddings").json() is None
    assert "tinyemb_pt" not in get(served, "embeddings")["loaded"]
