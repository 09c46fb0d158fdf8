"""What txt2img and img2img answer when their job has ended: pictures, the fields as they were understood, and A1111's
`info`."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from modules.app import App
from modules.diffusion.names import AUTOMATIC, resolve, sampler_info
from modules.generation import infotext
from modules.generation.plan import ImagePlan, plan
from modules.generation.request import GenerationRequest, Loopback
from modules.generation.steps import strengths
from modules.jobs.job import Job
from modules.jobs.keeper import loops
from modules.runtime.version import VERSION
from modules.server.call import Call
from modules.server.errors import ApiError
from modules.settings.schema import Settings

# What an infotext says of every picture; the rest is what A1111 calls extra_generation_params.
_ALWAYS = frozenset(
    """Steps|Sampler|Schedule type|CFG scale|Image CFG scale|Seed|Face restoration|Size|Model hash|Model|VAE hash|VAE|
    Variation seed|Variation seed strength|Seed resize from|Conditional mask weight|Clip skip|Token merging ratio|
    Token merging ratio hr|ENSD|Init image hash|RNG|Tiling|User|Version""".replace("\n", "")
    .replace("    ", "")
    .split("|")
)
_TEXTS = ("Refiner", "Hires checkpoint", "Lora hashes", "TI hashes", "Hires resize")  # never a number


def answer_of(app: App, call: Call, job: Job) -> JSONResponse:
    """Raises ApiError when there are no pictures to send."""
    if job.state == "failed":
        raise ApiError(500, f"the job failed: {job.error}")
    settings = Settings().with_overrides(job.settings)
    warnings = [*call.warnings, *(image.warning for image in job.images if image.warning)]
    pictures = [app.keeper.read(job, image) for image in job.images]
    if None in pictures:
        raise ApiError(410, "pictures of this job are not there any more; send it again with another force_task_id")
    grid = None
    several = len(pictures) > 1
    if (loops(job) and several) or (call.grid and (several or not settings.grid_only_if_multiple)):
        grid = app.keeper.grid(job, [picture for picture in pictures if picture], settings, warnings, call.grid)
    shown: list[bytes | None] = [grid]
    for image, picture in zip(job.images, pictures, strict=True):
        shown += [picture, *app.keeper.read_beside(job, image)]
    images = [base64.b64encode(data).decode("ascii") for data in shown if data and call.send_images]
    info = info_of(app, call, job, settings, f"easel-v{VERSION}", grid is not None)
    body: dict[str, Any] = {"images": images, "parameters": call.parameters, "info": json.dumps(info)}
    if warnings:
        body["warnings"] = warnings
    return JSONResponse(body)


def info_of(app: App, call: Call, job: Job, settings: Settings, version: str, grid: bool) -> dict[str, Any]:
    """The `info` of the answer. `grid`: there is one in front."""
    request, first = job.request, job.images[0].infotext if job.images else ""
    said = infotext.stated(first)
    images = _plans(app, job, settings)
    prompts = [image.prompt for image in images]
    negative_prompts = [image.negative_prompt for image in images]
    width, height = map(int, said["Size"].split("x")) if "Size" in said else (request.width, request.height)
    return {
        "prompt": prompts[0] if prompts else request.prompt,
        "all_prompts": prompts,
        "negative_prompt": negative_prompts[0] if negative_prompts else request.negative_prompt,
        "all_negative_prompts": negative_prompts,
        "seed": request.seed,
        "all_seeds": [image.seed for image in images],
        "subseed": request.variation_seed,
        "all_subseeds": [image.variation_seed for image in images],
        "subseed_strength": request.variation_strength,
        "width": width,
        "height": height,
        "sampler_name": request.sampler,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model.model_name,
        "sd_model_hash": job.model.sha256[:10] if job.model.sha256 else said.get("Model hash"),
        "sd_vae_name": said.get("VAE"),
        "sd_vae_hash": said.get("VAE hash"),
        "seed_resize_from_w": call.parameters["seed_resize_from_w"],
        "seed_resize_from_h": call.parameters["seed_resize_from_h"],
        "denoising_strength": _strength(call, request),
        "extra_generation_params": extra_parameters(request, said),
        "index_of_first_image": 1 if grid else 0,
        "infotexts": ([first] if grid else []) + [image.infotext for image in job.images],
        "styles": list(request.styles),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.started)),
        "clip_skip": settings.CLIP_stop_at_last_layers,
        "is_using_inpainting_conditioning": "Conditional mask weight" in said,
        "version": version,
    }


def _plans(app: App, job: Job, settings: Settings) -> Sequence[ImagePlan]:
    made = {image.index for image in job.images}
    return [image for image in plan(job.request, texts=app.texts(settings)).images if image.index in made]


def _strength(call: Call, request: GenerationRequest) -> Any:
    if request.init:
        return request.init.denoising_strength
    return request.hires.denoising_strength if request.hires else call.parameters["denoising_strength"]


def extra_parameters(request: GenerationRequest, said: Mapping[str, str]) -> dict[str, Any]:
    """What the infotext says beyond what it says of every picture, with numbers as numbers."""
    extra = {name: _value(name, text) for name, text in said.items() if name not in _ALWAYS}
    if request.init and isinstance(request.init.script, Loopback):
        extra["Denoising strength"] = strengths(request)[-1]  # as in A1111, though its infotexts have the first
    resolved = resolve(sampler_info(request.sampler), request.schedule)
    if resolved != AUTOMATIC:
        extra["Schedule type"] = resolved
    if request.hires:  # A1111 has functions there, and sends null for them
        extra |= {"Hires prompt": None, "Hires negative prompt": None}
        extra.setdefault("Hires schedule type", None)
    return extra


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if str(value) == text else text
    return text
