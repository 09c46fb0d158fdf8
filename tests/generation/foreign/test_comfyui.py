import json
from typing import Any

import pytest

from modules.generation.foreign.comfyui import read
from modules.generation.foreign.comfyui_graph import MAX_TEXT
from modules.generation.infotext import parse
from modules.generation.reading import to_request_fields
from modules.generation.request import GenerationRequest
from tests.ending import ends


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def simple(**changes: Any) -> dict[str, Any]:
    graph = {
        "3": node(
            "KSampler",
            **{"seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1},
            **{"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd\\dream v1.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat, (blue:1.2)", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }
    return {**graph, **changes}


def told(graph: dict[str, Any], key: str = "prompt") -> tuple[dict[str, Any], tuple[str, ...]]:
    found = read({key: json.dumps(graph)})
    assert found is not None and found.program == "ComfyUI"
    return parse(found.infotext), found.unmapped


def test_the_plain_graph():
    found = read({"prompt": json.dumps(simple())})
    assert found is not None
    assert found.infotext == (
        "a cat, (blue:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 5, Size: 512x768, Model: dream v1, RNG: CPU, Version: ComfyUI"
    )
    assert found.unmapped == ()
    reading = to_request_fields(parse(found.infotext))
    request = GenerationRequest(**reading.fields)
    assert (request.sampler, request.width, request.checkpoint) == ("DPM++ 2M", 512, "dream v1")
    assert reading.unmapped == () and request.overrides["randn_source"] == "CPU"


def test_loras_clip_skip_and_vae():
    graph = simple(
        **{
            "10": node(
                "LoraLoader", lora_name="style/ink.safetensors", strength_model=0.8, strength_clip=0.5, model=["4", 0]
            ),
            "11": node("LoraLoaderModelOnly", lora_name="detail.safetensors", strength_model=1.0, model=["10", 0]),
            "12": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
            "13": node("VAELoader", vae_name="kl-f8.pt"),
        }
    )
    graph["3"]["inputs"]["model"] = ["11", 0]
    graph["6"]["inputs"]["clip"] = ["12", 0]
    graph["8"]["inputs"]["vae"] = ["13", 0]
    found, unmapped = told(graph)
    assert found["Prompt"] == "a cat, (blue:1.2) <lora:ink:0.5:0.8><lora:detail:1>"
    assert (found["Clip skip"], found["VAE"], found["Model"]) == ("2", "kl-f8", "dream v1") and unmapped == ()


def test_prompts_that_are_put_together():
    graph = simple(
        **{
            "20": node("CLIPTextEncode", text=["21", 0], clip=["4", 1]),
            "21": node("StringConcatenate", string_a=["22", 0], string_b="at night", delimiter=", "),
            "22": node("PrimitiveString", value="a dog [wild]"),
            "23": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["20", 0]),
            "24": node("ConditioningConcat", conditioning_to=["23", 0], conditioning_from=["25", 0]),
            "25": node("CLIPTextEncode", text="embedding:good", clip=["4", 1]),
            "26": node("ControlNetApplyAdvanced", positive=["24", 0], negative=["7", 0], control_net=["27", 0]),
        }
    )
    graph["3"]["inputs"] |= {"positive": ["26", 0], "negative": ["26", 1]}
    found, unmapped = told(graph)
    assert found["Prompt"] == "a cat, (blue:1.2) AND a dog \\[wild\\], at night BREAK good"
    assert found["Negative prompt"] == "blurry"
    assert unmapped == ("ControlNetApplyAdvanced: what this node does",)


def test_a_second_pass_of_latents_is_hires_fix():
    graph = simple(
        **{
            "30": node("LatentUpscaleBy", upscale_method="nearest-exact", scale_by=1.5, samples=["3", 0]),
            "31": node(
                "KSampler",
                **{"seed": 6, "steps": 12, "cfg": 5, "sampler_name": "euler_ancestral", "scheduler": "normal"},
                **{
                    "denoise": 0.55,
                    "model": ["4", 0],
                    "positive": ["6", 0],
                    "negative": ["7", 0],
                    "latent_image": ["30", 0],
                },
            ),
        }
    )
    graph["8"]["inputs"]["samples"] = ["31", 0]
    found, unmapped = told(graph)
    assert (found["Steps"], found["Seed"], found["Sampler"], found["Size-1"]) == ("20", "5", "DPM++ 2M", "512")
    fields = to_request_fields(found).fields["hires"]
    assert fields == {
        **{"upscaler": "Latent (nearest-exact)", "scale": 1.5, "steps": 12, "denoising_strength": 0.55, "cfg_scale": 5},
        **{"sampler": "Euler a", "schedule": "Normal", "resize_width": 0, "resize_height": 0},
        **{"checkpoint": "", "prompt": "", "negative_prompt": ""},
    }
    assert unmapped == ("the seed of the second pass: 6; here it is the first one's",)


def test_a_second_pass_of_pixels():
    graph = simple(
        **{
            "40": node("ImageUpscaleWithModel", upscale_model=["41", 0], image=["42", 0]),
            "41": node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
            "42": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
            "43": node(
                "ImageScale", upscale_method="lanczos", width=1024, height=1536, crop="disabled", image=["40", 0]
            ),
            "44": node("VAEEncode", pixels=["43", 0], vae=["4", 2]),
            "45": node(
                "KSampler",
                **{
                    "seed": 5,
                    "steps": 20,
                    "cfg": 7.5,
                    "sampler_name": "dpmpp_2m",
                    "scheduler": "karras",
                    "denoise": 0.3,
                },
                **{"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["44", 0]},
            ),
        }
    )
    graph["8"]["inputs"]["samples"] = ["45", 0]
    found, unmapped = told(graph)
    assert (found["Hires upscaler"], found["Hires resize-1"], found["Hires resize-2"]) == (
        "4x-UltraSharp",
        "1024",
        "1536",
    )
    assert found["Denoising strength"] == "0.3" and "Hires upscale" not in found and unmapped == ()


def test_base_and_refiner():
    advanced = {
        "add_noise": "enable",
        "noise_seed": 9,
        "steps": 25,
        "cfg": 8.0,
        "sampler_name": "euler",
        "scheduler": "normal",
    }
    graph = simple(
        **{
            "3": node(
                "KSamplerAdvanced",
                **{**advanced, "start_at_step": 0, "end_at_step": 20, "model": ["4", 0]},
                **{"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
            ),
            "50": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
            "51": node(
                "KSamplerAdvanced",
                **{**advanced, "start_at_step": 20, "end_at_step": 10000, "model": ["50", 0]},
                **{"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["3", 0]},
            ),
        }
    )
    graph["8"]["inputs"]["samples"] = ["51", 0]
    found, unmapped = told(graph)
    assert (found["Refiner"], found["Refiner switch at"], found["Steps"]) == ("refiner", "0.8", "25")
    assert "Hires upscaler" not in found and unmapped == ()


def test_samplers_made_of_parts():
    graph = simple(
        **{
            "3": node(
                "SamplerCustomAdvanced",
                **{"noise": ["60", 0], "guider": ["61", 0], "sampler": ["62", 0], "sigmas": ["63", 0]},
                latent_image=["5", 0],
            ),
            "60": node("RandomNoise", noise_seed=77),
            "61": node("CFGGuider", cfg=4.5, model=["4", 0], positive=["6", 0], negative=["7", 0]),
            "62": node("KSamplerSelect", sampler_name="dpmpp_3m_sde_gpu"),
            "63": node("BasicScheduler", scheduler="exponential", steps=30, denoise=1.0, model=["4", 0]),
        }
    )
    found, _ = told(graph)
    assert (found["Seed"], found["CFG scale"], found["Steps"]) == ("77", "4.5", "30")
    assert (found["Sampler"], found["Schedule type"], found["Prompt"]) == (
        "DPM++ 3M SDE",
        "Exponential",
        "a cat, (blue:1.2)",
    )


def test_a_graph_that_starts_from_a_picture():
    graph = simple(
        **{
            "5": node("VAEEncode", pixels=["70", 0], vae=["4", 2]),
            "70": node("LoadImage", image="x.png"),
        }
    )
    graph["3"]["inputs"]["denoise"] = 0.6
    found, unmapped = told(graph)
    assert found["Denoising strength"] == "0.6" and unmapped == ("the init image: it is not in the picture",)
    assert to_request_fields(found).init["denoising_strength"] == 0.6


def test_sizes_that_depend_on_a_picture_and_other_loaders():
    graph = simple(
        **{
            "4": node("SomeModelLoader", model_name="new.safetensors", weight_dtype="default"),
            "5": node("EmptyLatentImage", width=["90", 0], height=["90", 1], batch_size=["92", 0]),
            "90": node("GetImageSize", image=["91", 0]),
            "91": node("LoadImage", image="x.png"),
            "92": node("PrimitiveInt", value=1),
        }
    )
    found, unmapped = told(graph)
    assert found["Model"] == "new" and "Size-1" not in found
    assert unmapped == ("the size: it is not in EmptyLatentImage",)


def test_linked_seeds_and_unknown_names():
    graph = simple(**{"80": node("PrimitiveNode", value=123), "81": node("Reroute", **{"": ["80", 0]})})
    graph["3"]["inputs"] |= {"seed": ["81", 0], "sampler_name": "res_multistep", "scheduler": "linear_quadratic"}
    found, unmapped = told(graph)
    assert found["Seed"] == "123" and "Sampler" not in found
    assert unmapped == (
        "Sampler: res_multistep (not known here)",
        "Schedule type: linear_quadratic (not known here)",
    )


def test_the_editors_workflow_alone():
    links = [[1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "C"], [3, 7, 0, 3, 2, "C"], [4, 5, 0, 3, 3, "LATENT"]]
    links += [[5, 3, 0, 9, 0, "LATENT"], [6, 8, 0, 6, 0, "CLIP"]]
    names = ("model", "positive", "negative", "latent_image")
    inputs = [{"name": name, "link": number} for number, name in enumerate(names, 1)]
    nodes = [
        {"id": 3, "type": "KSampler", "inputs": inputs, "widgets_values": [5, "fixed", 20, 7, "euler", "normal", 1]},
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["m.ckpt"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [640, 512, 1]},
        {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "clip", "link": 6}], "widgets_values": ["a cat"]},
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["bad"]},
        {"id": 8, "type": "CLIPSetLastLayer", "widgets_values": [-2]},
        {"id": 9, "type": "SaveImage", "inputs": [{"name": "images", "link": 5}], "widgets_values": ["x"]},
        {"id": 10, "type": "KSampler", "mode": 4, "widgets_values": [1]},
    ]
    found, unmapped = told({"nodes": nodes, "links": links}, "workflow")
    assert found["Prompt"] == "a cat" and found["Negative prompt"] == "bad" and found["Size-1"] == "640"
    assert (found["Sampler"], found["Schedule type"], found["Clip skip"], found["Model"]) == (
        "Euler",
        "Normal",
        "2",
        "m",
    )
    assert unmapped == ()


def doubling() -> dict[str, Any]:
    graph = simple(**{"t60": node("X", text="ab" * 10_000)})
    for number in range(60):
        graph[f"t{number}"] = node("Concat", a=[f"t{number + 1}", 0], b=[f"t{number + 1}", 0])
        graph[f"c{number}"] = node("ConditioningCombine", a=[f"c{number + 1}", 0], b=[f"c{number + 1}", 0])
    graph["c60"] = node("CLIPTextEncode", text=["t0", 0])
    graph["3"]["inputs"]["positive"] = ["c0", 0]
    return graph


def cyclic() -> dict[str, Any]:
    graph = simple()
    names = list(graph)
    for index, name in enumerate(names):
        following = names[(index + 1) % len(names)]
        graph[name]["inputs"] |= dict.fromkeys(
            ("model", "positive", "negative", "latent_image", "samples", "text", "seed", "conditioning"), [following, 0]
        )
    return graph


def huge() -> dict[str, Any]:
    link = {f"i{n}": [str(n), 0] for n in range(300)}
    return simple(
        **{str(n): node("KSampler", **link, latent_image=[str(n + 1), 0], seed=["9", 0]) for n in range(10, 3000)}
    )


def deep() -> dict[str, Any]:
    chain = {f"m{n}": node("Model", model=[f"m{n + 1}", 0]) for n in range(4000)}
    graph = simple(**chain)
    graph["3"]["inputs"] |= {"model": ["m0", 0], "seed": ["m0", 0], "positive": ["m0", 0]}
    return graph


@pytest.mark.parametrize("make", [doubling, cyclic, huge, deep])
def test_hostile_graphs_end(make: Any):
    text = json.dumps(make())
    with ends():
        found = read({"prompt": text})
    assert found is None or len(found.infotext) < 3 * MAX_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[1]",
        "null",
        "{}",
        '{"a": 1}',
        '{"3": {"class_type": "KSampler"}}',
        "[" * 100_000,
        '{"a":' * 5000,
    ],
)
def test_no_graph_is_no_picture(text: str):
    assert read({"prompt": text}) is None


ODD = [None, [], {}, "x", -1, 1e400, float("nan"), True, ["3", 0], [["3"], 0], ["nope", 1], '\n, : "', 10**400]


@pytest.mark.parametrize("value", ODD, ids=[str(n) for n in range(len(ODD))])
def test_odd_values_do_no_harm(value: Any):
    for name in simple():
        for key in list(simple()[name]["inputs"]):
            graph = simple()
            graph[name]["inputs"][key] = value
            found = read({"prompt": json.dumps(graph)})
            if found is not None:
                GenerationRequest(prompt=str(parse(found.infotext)["Prompt"]))
