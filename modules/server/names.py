"""What a call names by name – checkpoints, upscalers, VAEs, styles – has to be there before the call becomes a job."""

from modules.app import App
from modules.generation.request import SdUpscale
from modules.jobs.queue import NoCheckpoint, choose_checkpoint
from modules.library.upscalers import LATENT_UPSCALE_MODES, UnknownUpscaler
from modules.library.vaes import AUTOMATIC, NONE, UnknownVae
from modules.prompt.styles import StylesError, apply_styles
from modules.server.call import Call
from modules.server.errors import field_error, shown


def check_names(app: App, call: Call) -> None:
    """Raises ApiError with the nearest name; what A1111 leaves out silently becomes a warning."""
    request = call.request
    wanted = {
        "override_settings.sd_model_checkpoint": request.checkpoint,
        "refiner_checkpoint": request.refiner.checkpoint if request.refiner else "",
        "hr_checkpoint_name": request.hires.checkpoint if request.hires else "",
    }
    for field, name in wanted.items():
        if name:
            try:
                choose_checkpoint(app.library, name)
            except NoCheckpoint as error:
                raise field_error(field, name, str(error), 404) from error
    if request.hires and request.hires.upscaler not in LATENT_UPSCALE_MODES:
        try:
            app.upscalers.find(request.hires.upscaler)
        except UnknownUpscaler as error:
            raise field_error("hr_upscaler", request.hires.upscaler, str(error), 404) from error
    script = request.init and request.init.script
    if isinstance(script, SdUpscale):
        try:
            app.upscalers.find(script.upscaler)
        except UnknownUpscaler as error:
            raise field_error("script_args[2]", script.upscaler, str(error)) from error
    check_vae(app, request.overrides.get("sd_vae"), "override_settings.sd_vae")
    if request.styles:
        _check_styles(app, call)


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
