"""What the hubs of the tests have: a model of Civitai, repositories of Hugging Face, in the shapes of their
interfaces."""

import json
from typing import Any
from urllib.parse import quote

from tests.library.downloads.hub import Blob, Hub
from tests.library.downloads.test_fetch import safetensors

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)  # one pixel
COMMIT = "a" * 40


def answer(hub: Hub, path: str, content: Any, status: int = 200) -> None:
    hub.answers[path] = (status, {"Content-Type": "application/json"}, json.dumps(content).encode())


def lora(width: int = 768) -> bytes:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    return safetensors_of({name: (4, width), name.replace("down.weight", "up.weight"): (320, 4)})


def safetensors_of(shapes: dict[str, tuple[int, ...]]) -> bytes:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int.__mul__(*shape) if len(shape) == 2 else 2 * shape[0]
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(offset)


def civitai_file(hub: Hub, id: int, name: str, data: bytes, version: int = 128713, **more: Any) -> dict[str, Any]:
    path = f"/api/download/models/{version}/{id}"
    hub.blobs[path] = Blob(data, disposition=f'attachment; filename="{name}"')
    return {
        "id": id,
        "name": name,
        "type": "Model",
        "sizeKB": len(data) / 1024,
        "metadata": {"fp": "fp16", "size": "pruned", "format": "SafeTensor"},
        "hashes": {"SHA256": hub.blobs[path].sha256.upper(), "AutoV2": "X"},
        "pickleScanResult": "Success",
        "virusScanResult": "Success",
        "downloadUrl": f"{hub.url}{path}",
        "primary": id == 1,
    } | more


def civitai_model(hub: Hub, **more: Any) -> dict[str, Any]:
    """`more` goes into the version."""
    pickled = {"metadata": {"format": "PickleTensor"}, "primary": False}
    version = {
        "id": 128713,
        "modelId": 4384,
        "name": "8",
        "baseModel": "SD 1.5",
        "trainedWords": ["a dream", "of mountains"],
        "description": "<p>What <b>it</b> does.</p><script>alert(1)</script>",
        "availability": "Public",
        "files": [
            civitai_file(hub, 2, "dream.ckpt", b"PK\x03\x04" + bytes(2000), **pickled),
            civitai_file(hub, 1, "dream.safetensors", lora()),
            civitai_file(hub, 3, "training.zip", b"x", type="Training Data"),
        ],
        "images": [
            {"url": f"{hub.url}/nude.png", "nsfwLevel": 16, "type": "image"},
            {"url": f"{hub.url}/film.mp4", "nsfwLevel": 1, "type": "video"},
            {"url": f"{hub.url}/preview.png", "nsfwLevel": 1, "type": "image"},
        ],
        "model": {"name": "Dream", "type": "LORA", "nsfw": False},
    } | more
    hub.blobs["/preview.png"] = Blob(PNG, kind="image/png")
    model = {
        "id": 4384,
        "name": "Dream",
        "type": "LORA",
        "allowNoCredit": False,
        "allowCommercialUse": ["Image"],
        "allowDerivatives": True,
        "allowDifferentLicense": False,
        "modelVersions": [
            {key: value for key, value in version.items() if key not in ("modelId", "model")},
            {"id": 99, "name": "7", "files": [], "images": []},
        ],
    }
    answer(hub, "/api/v1/models/4384", model)
    answer(hub, "/api/v1/model-versions/128713", version)
    return version


def repository(hub: Hub, name: str, files: dict[str, bytes], **more: Any) -> None:
    siblings = []
    for path, data in files.items():
        blob = hub.blobs[f"/{name}/resolve/{COMMIT}/{quote(path)}"] = Blob(data)
        large = {"lfs": {"sha256": blob.sha256, "size": len(data)}} if path.endswith(("safetensors", "bin")) else {}
        siblings.append({"rfilename": path, "size": len(data)} | large)
    about = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "gated": False} | more
    answer(hub, f"/api/models/{name}/revision/main", about)


def diffusers_files() -> dict[str, bytes]:
    weights = safetensors(3000)
    files = {
        "README.md": b"x",
        "model_index.json": b"{}",
        "v1.safetensors": lora(),
        "safety_checker/config.json": b"{}",
    }
    for part in ("unet", "vae"):
        for ending in ("safetensors", "fp16.safetensors", "bin"):
            files[f"{part}/diffusion_pytorch_model.{ending}"] = weights
        files[f"{part}/config.json"] = b"{}"
    files |= {"text_encoder/model.safetensors": weights, "text_encoder/config.json": b"{}"}
    files |= {"text_encoder/model.fp16-00001-of-00002.safetensors": weights}
    files |= {"text_encoder/model.fp16-00002-of-00002.safetensors": weights}
    files |= {"text_encoder/model.safetensors.index.fp16.json": b'{"weight_map": {}}'}
    files |= {"tokenizer/merges.txt": b"#", "tokenizer/vocab.json": b"{}", "scheduler/scheduler_config.json": b"{}"}
    files |= {"safety_checker/model.safetensors": weights, "unet/diffusion_flax_model.msgpack": b"x"}
    return files
