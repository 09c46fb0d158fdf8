"""What a call names by name – checkpoints, upscalers, VAEs, styles – has to be there before the call becomes a job."""

from collections.abc import Mapping

from modules.app import App
from modules.generation.request import GenerationRequest, SdUpscale
from modules.jobs.queue import NoCheckpoint, choose_checkpoint
from modules.library.upscalers import LATENT_UPSCALE_MODES, UnknownUpscaler
from modules.library.vaes import AUTOMATIC, NONE, UnknownVae
from modules.prompt.styles import StylesError, apply_styles
from modules.server.call import Call
from modules.server.errors import field_error, shown

# A1111's fields by ours.
A1111_FIELDS = {
    "checkpoint": "override_settings.sd_model_checkpoint",
    "refiner.checkpoint": "refiner_checkpoint",
    "hires.checkpoint": "hr_checkpoint_name",
    "hires.upscaler": "hr_upscaler",
    "init.script.upscaler": "script_args[2]",
    "overrides.sd_vae": "override_settings.sd_vae",
}


def check_names(app: App, call: Call) -> None:
    """Of a call of A1111's API; what A1111 leaves out silently becomes a warning. Raises ApiError."""
    check_request(app, call.request, A1111_FIELDS)
    if call.request.styles:
        _check_styles(app, call)


def check_request(app: App, request: GenerationRequest, fields: Mapping[str, str] | None = None) -> None:
    """Raises ApiError with the nearest name. `fields`: what the request's fields are called in the answer."""
    told = fields or {}
    hires, script = request.hires, request.init and request.init.script
    checkpoints = {
        "checkpoint": request.checkpoint,
        "refiner.checkpoint": request.refiner.checkpoint if request.refiner else "",
        "hires.checkpoint": hires.checkpoint if hires else "",
    }
    for field, name in checkpoints.items():
        if name:
            try:
                choose_checkpoint(app.library, name)
            except NoCheckpoint as error:
                raise field_error(told.get(field, field), name, str(error), 404) from error
    upscalers = {
        "hires.upscaler": (hires.upscaler, 404) if hires and hires.upscaler not in LATENT_UPSCALE_MODES else None,
        "init.script.upscaler": (script.upscaler, 422) if isinstance(script, SdUpscale) else None,
    }
    for field, wanted in upscalers.items():
        if wanted:
            try:
                app.upscalers.find(wanted[0])
            except UnknownUpscaler as error:
                raise field_error(told.get(field, field), wanted[0], str(error), wanted[1]) from error
    check_vae(app, request.overrides.get("sd_vae"), told.get("overrides.sd_vae", "overrides.sd_vae"))
    for id in request.pictures:
        if id not in app.inputs:
            raise field_error("init", id, "there is no such input picture (any more); send it to /api/v1/inputs", 404)


def _check_styles(app: App, call: Call) -> None:
    request = call.request
    known = {style.name: style for style in app.styles()}
    call.warnings.extend(f"there is no style {shown(name)!r}" for name in request.styles if name not in known)
    styles = [known[name] for name in request.styles if name in known]
    try:
        apply_styles(request.prompt, [style.prompt for style in styles])
        apply_styles(request.negative_prompt, [style.negative_prompt for style in styles])
    except StylesError as error:
        raise field_error("styles", request.styles, str(error)) from error


def check_vae(app: App, name: object, field: str) -> None:
    """Raises ApiError for a VAE that is not there. What is no name is left to the settings."""
    if not isinstance(name, str) or name.casefold() in ("", "auto", AUTOMATIC.casefold(), NONE.casefold()):
        return
    try:
        app.vaes.find(name)
    except UnknownVae as error:
        raise field_error(field, name, str(error), 404) from error
