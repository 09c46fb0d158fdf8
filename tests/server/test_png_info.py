import base64
import io
import json
import struct
from typing import Any

import pytest
from fastapi import HTTPException
from PIL import Image, PngImagePlugin

from modules.gallery.save import exif_with_comment
from modules.generation.reading import to_request_fields
from modules.imaging.stealth import read_stealth
from modules.server.errors import ApiError
from modules.server.png_info import read_picture
from tests.ending import ends
from tests.imaging.test_stealth import hidden

INFOTEXT = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Version: v1.10.1"
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "karras", "denoise": 1}
        | {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
    "8": {"class_type": "FreeU", "inputs": {"model": ["4", 0]}},
}
GRAPH["3"]["inputs"]["model"] = ["8", 0]


def png(**texts: str) -> bytes:
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def answer(data: bytes) -> dict[str, Any]:
    return read_picture(base64.b64encode(data).decode())


def test_our_own_and_a1111s():
    found = answer(png(parameters=INFOTEXT))
    assert (found["info"], found["items"]) == (INFOTEXT, {}) and "program" not in found


def test_a_graph_in_a_png():
    found = answer(png(prompt=json.dumps(GRAPH), workflow="{}"))
    assert found["program"] == "ComfyUI" and found["unmapped"] == ["FreeU: what this node does"]
    assert found["info"].startswith("a cat\nNegative prompt: bad\nSteps: 20, Sampler: Euler, Schedule type: Karras")
    assert found["parameters"]["Seed"] == "5" and json.loads(found["items"]["prompt"]) == GRAPH
    assert to_request_fields(found["parameters"]).unmapped == ()


def exif_of(**tags: str) -> bytes:
    numbers = {"Make": 0x010F, "Model": 0x0110}
    block, data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    start = 8 + 2 + 12 * len(tags) + 4
    for name, text in tags.items():
        raw = text.encode() + b"\0"
        block += struct.pack("<HHII", numbers[name], 2, len(raw), start + len(data))
        data += raw
    return b"Exif\0\0" + block + bytes(4) + data


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_a_graph_in_the_fields_of_a_camera(kind: str):
    buffer = io.BytesIO()
    exif = exif_of(Make="workflow:{}", Model=f"prompt:{json.dumps(GRAPH)}")
    Image.new("RGB", (8, 8)).save(buffer, kind, exif=exif)
    assert answer(buffer.getvalue())["program"] == "ComfyUI"


def test_json_in_the_place_of_an_infotext_stays_readable():
    swarm = json.dumps({"sui_image_params": {"prompt": "a dog", "steps": 5, "seed": 1, "cfgscale": 7, "odd": 1}})
    found = answer(png(parameters=swarm))
    assert (found["program"], found["unmapped"], found["items"]) == ("SwarmUI", ["odd: 1"], {"parameters": swarm})
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif_with_comment(swarm))
    found = answer(buffer.getvalue())
    assert (found["program"], found["items"]) == ("SwarmUI", {"exif comment": swarm})


def test_what_is_hidden_in_the_pixels():
    comment = json.dumps({"steps": 28, "sampler": "k_euler", "seed": 7, "scale": 5, "uc": "bad"})
    text = json.dumps({"Software": "NovelAI", "Description": "a {cat}", "Comment": comment})
    found = answer(hidden(b"stealth_pnginfo", text.encode()))
    assert found["program"] == "NovelAI" and found["parameters"]["Prompt"] == "a (cat:1.05)"
    plain = answer(hidden(b"stealth_rgbinfo", INFOTEXT.encode()))
    assert plain["info"] == INFOTEXT and "program" not in plain
    assert read_stealth(png()) == "" and answer(png())["info"] == ""


@pytest.mark.parametrize("hostile", ["{" * 60_000, '{"1": {"class_type": "KSampler", "inputs": 5}}', "[]", "null"])
def test_hostile_texts(hostile: str):
    names = ("parameters", "prompt", "workflow", "Comment", "Software", "invokeai_metadata", "sd-metadata", "Dream")
    answer(png(**dict.fromkeys(names, hostile)))
    answer(hidden(b"stealth_pnginfo", hostile[:500].encode()))


@pytest.mark.parametrize("image", [None, "", 5, "%%%"])
def test_no_picture(image: Any):
    with pytest.raises((ApiError, HTTPException)):
        read_picture(image)


MEBI = 2**20 - 10
LARGE = {
    "names": "a:" * (MEBI // 2),
    "brackets": "[" * MEBI,
    "quotes": 'aa:"' * (MEBI // 4),
    "weights": "a\nSteps: 1, Sampler: x, " + "(a:1.2), " * (MEBI // 9),
    "graph": json.dumps(
        {
            str(n): {
                "class_type": "KSampler",
                "inputs": {"latent_image": [str(n + 1), 0], "seed": 1, "positive": [str(n * 7 % 4999), 0]},
            }
            for n in range(4999)
        }
    ),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("name", ["parameters", "prompt", "Dream"])
def test_a_mebibyte_of_anything_is_read(name: str, kind: str):
    data = png(**{name: LARGE[kind]})
    with ends():
        answer(data)
