"""The lists of /sdapi/v1: what there is to choose from, in A1111's shapes, and looking for it anew."""

from typing import Any

from fastapi import APIRouter

from modules.app import App
from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS, SamplerInfo
from modules.library.upscalers import LATENT_UPSCALE_MODES
from modules.server import builtin, networks

UNLOADED_WITHIN_S = 20.0


def add_routes(router: APIRouter, app: App) -> None:
    _add_models(router, app)
    networks.add_routes(router, app)
    _add_choices(router, app)


def _add_models(router: APIRouter, app: App) -> None:
    @router.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        return [
            {
                "title": one.title,
                "model_name": one.flat_name,
                "hash": one.shorthash,
                "sha256": one.sha256,
                "filename": str(one.path),
                "config": str(one.config) if one.config else None,
            }
            for one in app.library.usable()
        ]

    @router.post("/refresh-checkpoints")
    def refresh() -> None:
        app.library.refresh()

    @router.post("/unload-checkpoint")
    def unload() -> dict[str, Any]:
        """Done when the answer comes, unless a job runs: then when it has ended."""
        app.worker.unload(0 if app.queue.running else UNLOADED_WITHIN_S)
        return {}

    @router.post("/reload-checkpoint")
    def reload() -> dict[str, Any]:
        app.worker.reload()
        return {}

    @router.get("/sd-vae")
    def vaes() -> list[dict[str, Any]]:
        return [{"model_name": one.name, "filename": str(one.path)} for one in app.vaes.list()]

    @router.post("/refresh-vae")
    def refresh_vaes() -> None:
        app.vaes.refresh()


def _add_choices(router: APIRouter, app: App) -> None:
    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [
            {"name": one.name, "aliases": list(one.aliases), "options": sampler_options(one)} for one in SAMPLER_INFOS
        ]

    @router.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "label": one.label,
                "aliases": list(one.aliases) or None,
                "default_rho": one.default_rho,
                "need_inner_model": one.need_inner_model,
            }
            for one in SCHEDULE_INFOS
        ]

    @router.get("/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "model_name": one.model_name,
                "model_path": str(one.path) if one.path else None,
                "model_url": None,
                "scale": float(one.scale),
            }
            for one in app.upscalers.list()
            if not one.problem
        ]

    @router.get("/realesrgan-models")
    def realesrgan_models() -> list[dict[str, Any]]:
        return [
            {"name": one.name, "path": str(one.path), "scale": one.scale}
            for one in app.upscalers.list()
            if one.kind == "RealESRGAN" and not one.problem
        ]

    @router.get("/latent-upscale-modes")
    def latent_upscale_modes() -> list[dict[str, Any]]:
        return [{"name": name} for name in LATENT_UPSCALE_MODES]

    @router.get("/prompt-styles")
    def styles() -> list[dict[str, Any]]:
        return [
            {"name": one.name, "prompt": one.prompt, "negative_prompt": one.negative_prompt} for one in app.styles()
        ]

    @router.get("/face-restorers")
    def face_restorers() -> list[dict[str, Any]]:
        """None are here yet."""
        return []

    @router.get("/scripts")
    def scripts() -> dict[str, Any]:
        return {
            "txt2img": [one.name for one in builtin.scripts_of("txt2img")],
            "img2img": [one.name for one in builtin.scripts_of("img2img")],
        }

    @router.get("/script-info")
    def script_info() -> list[dict[str, Any]]:
        return builtin.describe("txt2img") + builtin.describe("img2img")


def sampler_options(info: SamplerInfo) -> dict[str, str]:
    """A1111 sends these as text."""
    options = {"scheduler": info.schedule.lower()} if info.schedule else {}
    for name in ("uses_ensd", "discard_next_to_last_sigma", "second_order", "brownian_noise"):
        if getattr(info, name):
            options[name] = "True"
    return options
