"""What the user may set: one line a setting, under A1111's keys, so that a config.json of theirs works here.
Plain frozen data; knows nothing of files, pages or what a setting does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

ImageFormat = Literal["png", "jpg", "jpeg", "webp", "avif"]


class SettingError(ValueError):
    """A setting that cannot be. `reason` says why, without the key; `nearest` is a key or choice that may be meant."""

    def __init__(self, key: str, value: object, reason: str, nearest: str | None = None, protected: bool = False):
        self.key, self.value, self.reason, self.nearest, self.protected = key, value, reason, nearest, protected
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"setting {key[:80]!r}: {reason}{hint}")


@dataclass(frozen=True)
class SettingInfo:
    """All that a page, an API or the docs need to know of a setting."""

    key: str
    section: str  # A1111's section key
    section_title: str
    type: Literal["bool", "int", "float", "str", "list"]
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    step: float | None
    choices: tuple[str, ...] | None  # for a list: its possible members
    infotext: str | None  # its name in an infotext, where it has one
    path: bool  # names a place on the disk
    security: bool
    secret: bool  # a key of the user's: written by anybody who may, told to nobody
    effective: bool  # False: kept for A1111's sake, nothing in Easel reads it yet


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    step: float | None = None,
    infotext: str | None = None,
    path: bool = False,
    security: bool = False,
    secret: bool = False,
    effective: bool = True,
) -> Any:
    extra = {"step": step, "infotext": infotext, "path": path, "security": security, "secret": secret}
    extra |= {"effective": effective}
    return Field(default, description=help, ge=ge, le=le, json_schema_extra={k: v for k, v in extra.items()})


class Section(BaseModel):
    """A group of settings. `key` and `title` name it on the settings page."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    key: ClassVar[str] = ""
    title: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _whole_floats_are_integers(cls, value: Any, info: Any) -> Any:
        """JSON and sliders write 5.0 for 5."""
        wants_int = cls.model_fields[info.field_name].annotation is int
        return int(value) if wants_int and isinstance(value, float) and value.is_integer() else value


class SavingPaths(Section):
    key, title = "saving-paths", "Paths for saving"

    outdir_samples: str = setting("", "One folder for all pictures. Empty: the folders below.", path=True)
    outdir_txt2img_samples: str = setting("outputs/txt2img-images", "Folder of txt2img pictures.", path=True)
    outdir_img2img_samples: str = setting("outputs/img2img-images", "Folder of img2img pictures.", path=True)
    outdir_extras_samples: str = setting(
        "outputs/extras-images", "Folder of Extras pictures.", path=True, effective=False
    )
    outdir_grids: str = setting("", "One folder for all grids. Empty: the folders below.", path=True)
    outdir_txt2img_grids: str = setting("outputs/txt2img-grids", "Folder of txt2img grids.", path=True)
    outdir_img2img_grids: str = setting("outputs/img2img-grids", "Folder of img2img grids.", path=True)
    outdir_save: str = setting("log/images", "Folder of the Save button.", path=True, effective=False)
    outdir_init_images: str = setting("outputs/init-images", "Folder of kept init images.", path=True, effective=False)


class SavingImages(Section):
    key, title = "saving-images", "Saving pictures"

    samples_save: bool = setting(True, "Save every picture that is made.")
    samples_format: ImageFormat = setting("png", "File format of pictures.")
    samples_filename_pattern: str = setting("", "Name of a picture, as a pattern such as [seed]-[prompt_spaces].")
    save_images_add_number: bool = setting(True, "Start names with a running number.")
    save_images_replace_action: Literal["Replace", "Add number suffix"] = setting(
        "Replace", "What happens when an unnumbered name exists already."
    )
    grid_save: bool = setting(True, "Save a grid of each batch.")
    grid_format: ImageFormat = setting("png", "File format of grids.")
    grid_extended_filename: bool = setting(False, "Put seed and prompt into the names of grids.")
    grid_only_if_multiple: bool = setting(True, "No grid for a single picture.")
    grid_prevent_empty_spots: bool = setting(False, "Choose the rows of a grid so that no cell stays empty.")
    n_rows: int = setting(-1, "Rows of a grid. -1: nearly square; 0: one batch a row.", ge=-1, le=16, step=1)
    save_images_before_highres_fix: bool = setting(False, "Also save the picture before hires fix.", effective=False)
    save_images_before_color_correction: bool = setting(
        False, "Also save the picture before colour correction.", effective=False
    )
    save_mask: bool = setting(False, "Also save the inpainting mask.")
    save_mask_composite: bool = setting(False, "Also save the inpainted part alone.")
    save_init_img: bool = setting(False, "Keep init images.", effective=False)
    jpeg_quality: int = setting(80, "Quality of JPEG, WebP and AVIF files.", ge=1, le=100, step=1)
    webp_lossless: bool = setting(False, "Write WebP without loss.")
    save_incomplete_images: bool = setting(False, "Also save pictures of interrupted runs.")
    notification_audio: bool = setting(True, "Play a sound when pictures are ready.", effective=False)
    notification_volume: int = setting(100, "Loudness of that sound in percent.", ge=0, le=100, step=1, effective=False)


class SavingToDirs(Section):
    key, title = "saving-to-dirs", "Folders of pictures"

    save_to_dirs: bool = setting(True, "Put pictures into subfolders.")
    grid_save_to_dirs: bool = setting(True, "Put grids into subfolders.")
    directories_filename_pattern: str = setting("[date]", "Name of the subfolders, as a pattern.")
    directories_max_prompt_words: int = setting(8, "Most words that [prompt_words] takes.", ge=1, le=20, step=1)


class Compatibility(Section):
    key, title = "compatibility", "Compatibility with older pictures"

    auto_backcompat: bool = setting(True, "Read the infotext of an old version with that version's options.")
    use_old_emphasis_implementation: bool = setting(False, "Emphasis as in 2022.")
    use_old_karras_scheduler_sigmas: bool = setting(False, "Karras noise levels from 0.1 to 10.")
    no_dpmpp_sde_batch_determinism: bool = setting(False, "Let SDE samplers give other pictures in a batch than alone.")
    use_old_hires_fix_width_height: bool = setting(False, "Width and height are those of the final picture.")
    hires_fix_use_firstpass_conds: bool = setting(False, "Second pass with the first pass's prompts.")
    use_old_scheduling: bool = setting(
        False, "Prompt editing counts as in old versions.", infotext="Old prompt editing timelines"
    )
    use_downcasted_alpha_bar: bool = setting(
        False, "Round the noise schedule to half precision.", infotext="Downcast alphas_cumprod"
    )
    refiner_switch_by_sample_steps: bool = setting(
        False, "Refiner fraction counts sampler steps.", infotext="Refiner switch by sampling steps"
    )


class ExtraNetworks(Section):
    key, title = "extra_networks", "Extra networks"

    extra_networks_default_multiplier: float = setting(1.0, "Weight that a card inserts.", ge=0, le=2, step=0.01)
    sd_lora: str = setting("None", "A LoRA that every prompt gets.")
    sd_hypernetwork: str = setting("None", "A hypernetwork that every prompt gets.")
    lora_functional: bool = setting(False, "Compute LoRAs beside the weights instead of adding them: slower.")
    lora_bundled_ti_to_infotext: bool = setting(True, "Hashes of embeddings inside of LoRAs go into the infotext.")
    extra_networks_add_text_separator: str = setting(" ", "Text before an inserted network.")
    textual_inversion_add_hashes_to_infotext: bool = setting(True, "Hashes of embeddings go into the infotext.")
    lora_in_memory_limit: int = setting(0, "LoRA files that stay in memory for the jobs that follow.")
    lora_add_hashes_to_infotext: bool = setting(True, "Hashes of LoRAs go into the infotext.")
    lora_preferred_name: Literal["Alias from file", "Filename"] = setting(
        "Alias from file", "Name that a LoRA card inserts.", effective=False
    )


class Optimizations(Section):
    key, title = "optimizations", "Speed"

    cross_attention_optimization: Literal[
        "Automatic",
        "xformers",
        "sdp-no-mem - scaled dot product without memory efficient attention",
        "sdp - scaled dot product",
        "sub-quadratic",
        "InvokeAI",
        "Doggettx",
        "V1 - original v1",
        "None",
    ] = setting(
        "Automatic",
        "How attention is computed: torch's own (sdp), or in slices, which takes less memory (sub-quadratic; InvokeAI, "
        "Doggettx and V1 stand for it). Automatic: what the command line says, else the best for this machine.",
    )
    s_min_uncond: float = setting(
        0.0, "Skip the negative prompt below this noise.", ge=0, le=15, step=0.01, infotext="NGMS"
    )
    s_min_uncond_all: bool = setting(False, "Skip at every step, not every other.", infotext="NGMS all steps")
    token_merging_ratio: float = setting(
        0.0, "Share of tokens to merge.", ge=0, le=0.9, step=0.1, infotext="Token merging ratio"
    )
    token_merging_ratio_img2img: float = setting(0.0, "The same in img2img. 0: as above.", ge=0, le=0.9, step=0.1)
    token_merging_ratio_hr: float = setting(
        0.0, "The same in the hires pass.", ge=0, le=0.9, step=0.1, infotext="Token merging ratio hr"
    )
    torch_compile: Literal["Off", "inductor", "cudagraphs"] = setting(
        "Off",
        "Compile the UNet on an NVIDIA card: inductor writes kernels, which takes minutes for each size; cudagraphs "
        "records its calls and plays them again, without Triton. Neither has been tried on a card yet.",
    )
    step_caching: int = setting(
        1,
        "Go through the whole UNet only every so many calls: faster, another picture.",
        ge=1,
        le=10,
        infotext="Step caching",
    )
    pad_cond_uncond: bool = setting(False, "Pad prompt and negative prompt to one length.", infotext="Pad conds")
    pad_cond_uncond_v0: bool = setting(
        False, "Pad as old versions did, with the same vector again.", infotext="Pad conds v0"
    )
    batch_cond_uncond: bool = setting(True, "Prompt and negative prompt go through the network together.")
    fp8_storage: Literal["Disable", "Enable for SDXL", "Enable"] = setting(
        "Disable", "Keep the UNet's weights in 8 bits: half the memory, a slightly different picture."
    )
    cache_fp16_weight: bool = setting(
        False, "Keep them in all their bits too, in main memory, for LoRAs to be added to: more exact."
    )
    persistent_cond_cache: bool = setting(True, "What prompts were encoded to is kept for the jobs that follow.")
    decode_beside_sampling: Literal["Automatic", "Always", "Never"] = setting(
        "Automatic",
        "Decode a batch while the next one is sampled. Automatic: on CUDA, where the memory suffices for both.",
    )


class SamplerParameters(Section):
    key, title = "sampler-params", "Sampler parameters"

    hide_samplers: list[str] = setting([], "Samplers that menus leave out.", effective=False)
    eta_ddim: float = setting(0.0, "Noise that DDIM adds.", ge=0, le=1, step=0.01, infotext="Eta DDIM")
    eta_ancestral: float = setting(1.0, "Noise that ancestral samplers add.", ge=0, le=1, step=0.01, infotext="Eta")
    ddim_discretize: Literal["uniform", "quad"] = setting("uniform", "No effect, as in A1111.", effective=False)
    s_churn: float = setting(0.0, "Noise that is stirred in.", ge=0, le=100, step=0.01, infotext="Sigma churn")
    s_tmin: float = setting(0.0, "Churn above this noise level.", ge=0, le=10, step=0.01, infotext="Sigma tmin")
    s_tmax: float = setting(
        0.0, "Churn below this noise level. 0: no limit.", ge=0, le=999, step=0.01, infotext="Sigma tmax"
    )
    s_noise: float = setting(1.0, "Strength of added noise.", ge=0, le=1.1, step=0.001, infotext="Sigma noise")
    sigma_min: float = setting(
        0.0, "Smallest noise level. 0: the model's.", ge=0, le=1_000_000, infotext="Schedule min sigma"
    )
    sigma_max: float = setting(
        0.0, "Largest noise level. 0: the model's.", ge=0, le=1_000_000, infotext="Schedule max sigma"
    )
    rho: float = setting(0.0, "Bend of the schedule. 0: the schedule's own.", ge=0, le=1000, infotext="Schedule rho")
    eta_noise_seed_delta: int = setting(0, "Added to the seed of later noise.", ge=-(2**53), le=2**53, infotext="ENSD")
    always_discard_next_to_last_sigma: bool = setting(
        False, "Leave out the last noise level but one.", infotext="Discard penultimate sigma"
    )
    sgm_noise_multiplier: bool = setting(False, "First noise as in SGM.", infotext="SGM noise multiplier")
    uni_pc_variant: Literal["bh1", "bh2", "vary_coeff"] = setting("bh1", "Form of UniPC.", infotext="UniPC variant")
    uni_pc_skip_type: Literal["time_uniform", "time_quadratic", "logSNR"] = setting(
        "time_uniform", "Spacing of UniPC's steps.", infotext="UniPC skip type"
    )
    uni_pc_order: int = setting(3, "Order of UniPC.", ge=1, le=50, step=1, infotext="UniPC order")
    uni_pc_lower_order_final: bool = setting(True, "UniPC ends with lower orders.", infotext="UniPC lower order final")
    ddpm_variance: Literal["small", "large"] = setting(
        "small",
        "Variance of DDPM's noise: of the true posterior, or the larger one of the step.",
        infotext="DDPM variance",
    )
    sd_noise_schedule: Literal["Default", "Zero Terminal SNR"] = setting(
        "Default", "Noise schedule of the model.", infotext="Noise Schedule"
    )
    skip_early_cond: float = setting(
        0.0,
        "Share of first steps without negative prompt.",
        ge=0,
        le=1,
        step=0.01,
        infotext="Skip Early CFG",
    )
    beta_dist_alpha: float = setting(
        0.6, "Alpha of the Beta schedule.", ge=0.01, le=1, step=0.01, infotext="Beta scheduler alpha"
    )
    beta_dist_beta: float = setting(
        0.6, "Beta of the Beta schedule.", ge=0.01, le=1, step=0.01, infotext="Beta scheduler beta"
    )


class StableDiffusion(Section):
    key, title = "sd", "Stable Diffusion"

    sd_model_checkpoint: str | None = setting(None, "The checkpoint that makes the pictures.", infotext="Model hash")
    emphasis: Literal["None", "Ignore", "Original", "No norm"] = setting(
        "Original", "What weights such as (this:1.2) do.", infotext="Emphasis"
    )
    enable_quantization: bool = setting(False, "Noise levels at the model's whole timesteps only.")
    enable_batch_seeds: bool = setting(True, "Each picture of a batch has its own seed.", effective=False)
    comma_padding_backtrack: int = setting(
        20, "Tokens to look back for a comma where a chunk ends.", ge=0, le=74, step=1
    )
    CLIP_stop_at_last_layers: int = setting(
        1, "Layer of the text encoder to take, counted from the end.", ge=1, le=12, step=1, infotext="Clip skip"
    )
    randn_source: Literal["GPU", "CPU", "NV"] = setting(
        "GPU", "Where noise comes from. CPU and NV give the same picture on every machine.", infotext="RNG"
    )
    tiling: bool = setting(False, "Make pictures that tile.", infotext="Tiling")
    sdxl_crop_top: int = setting(0, "SDXL is told that the picture was cut here, in pixels.", ge=0, le=1024, step=1)
    sdxl_crop_left: int = setting(0, "The same from the left.", ge=0, le=1024, step=1)
    sdxl_refiner_high_aesthetic_score: float = setting(
        6.0, "What the SDXL refiner is to aim at.", ge=0, le=10, step=0.1
    )
    sdxl_refiner_low_aesthetic_score: float = setting(2.5, "What it is to keep away from.", ge=0, le=10, step=0.1)
    sdxl_clip_l_skip: bool = setting(False, "Clip skip counts for SDXL's first text encoder too.")
    hires_fix_refiner_pass: Literal["first pass", "second pass", "both passes"] = setting(
        "second pass", "Where the refiner works.", infotext="Hires refiner"
    )
    enable_prompt_comments: bool = setting(True, "Text after # in a prompt is a comment.")
    sd_vae: str = setting("Automatic", "The VAE: a file's name, Automatic or None.", infotext="VAE")
    sd_text_encoders: str = setting(
        "", "Text encoders for checkpoints without: files of models/text_encoder, with commas. Empty: a checkpoint's."
    )
    sd_vae_overrides_per_model_preferences: bool = setting(
        True, "The VAE chosen above goes before what a checkpoint's own notes ask for."
    )
    auto_vae_precision: bool = setting(True, "A VAE that overflows in 16 bits goes on in 32.")
    auto_vae_precision_bfloat16: bool = setting(False, "A VAE that overflows in float16 is tried in bfloat16 first.")
    sd_checkpoints_limit: int = setting(
        0, "Most checkpoints that are kept loaded. 0: as many as fit into memory.", ge=0, le=10, step=1
    )
    sd_checkpoints_keep_in_cpu: bool = setting(True, "Of these, only the one at work stays on the GPU.")
    sd_checkpoint_cache: int = setting(
        0, "So many more checkpoints are kept, if the number above is not 0.", ge=0, le=10, step=1
    )
    sd_vae_checkpoint_cache: int = setting(
        0, "VAEs in files of their own that are kept beside the one in use.", ge=0, le=10, step=1
    )
    upcast_attn: bool = setting(False, "Attention is computed in 32 bits, whatever the rest of the network is in.")
    sd_checkpoint_hash: str = setting("", "The sha256 of the checkpoint in use; kept by the program.", effective=False)


class ImageToImage(Section):
    key, title = "img2img", "img2img"

    inpainting_mask_weight: float = setting(
        1.0,
        "Strength of the mask for inpainting models.",
        ge=0,
        le=1,
        step=0.01,
        infotext="Conditional mask weight",
    )
    initial_noise_multiplier: float = setting(
        1.0, "Strength of the first noise.", ge=0, le=1.5, step=0.001, infotext="Noise multiplier"
    )
    img2img_extra_noise: float = setting(
        0.0, "More noise on the init image.", ge=0, le=1, step=0.01, infotext="Extra noise"
    )
    img2img_color_correction: bool = setting(False, "Match the init image's colours.")
    img2img_fix_steps: bool = setting(False, "Do exactly the steps that are asked for.")
    img2img_background_color: str = setting("#ffffff", "Colour under transparent init images.")
    return_mask: bool = setting(False, "Show the mask too.")
    return_mask_composite: bool = setting(False, "Show the inpainted part too.")
    overlay_inpaint: bool = setting(True, "Paste inpainted parts into the original.")


class Upscaling(Section):
    key, title = "upscaling", "Upscaling"

    ESRGAN_tile: int = setting(
        192, "Side of the tiles that upscalers work on, in pixels. 0: no tiles.", ge=0, le=512, step=16
    )
    ESRGAN_tile_overlap: int = setting(8, "Overlap of these tiles in pixels.", ge=0, le=48, step=1)
    upscaler_for_img2img: str | None = setting(
        None, "Upscaler for init images that are smaller than the picture. Empty: Lanczos."
    )


class Gallery(Section):
    key, title = "ui_gallery", "Gallery"

    return_grid: bool = setting(True, "Show the grid first.")
    do_not_show_images: bool = setting(False, "Show no pictures.", effective=False)


class Infotext(Section):
    key, title = "infotext", "Infotext"

    enable_pnginfo: bool = setting(True, "Write the infotext into the picture's file.")
    save_txt: bool = setting(False, "Write the infotext into a text file beside the picture.")
    add_model_name_to_info: bool = setting(True, "The infotext names the checkpoint.")
    add_model_hash_to_info: bool = setting(True, "The infotext has the checkpoint's hash.")
    add_vae_name_to_info: bool = setting(True, "The infotext names the VAE.")
    add_vae_hash_to_info: bool = setting(True, "The infotext has the VAE's hash.")
    add_user_name_to_info: bool = setting(False, "The infotext names the user.", effective=False)
    add_attention_to_infotext: bool = setting(False, "The infotext says how attention was computed.")
    add_version_to_infotext: bool = setting(True, "The infotext has the program's version.")
    disable_weights_auto_swap: bool = setting(True, "Reading an infotext leaves the checkpoint as it is.")
    infotext_skip_pasting: list[str] = setting([], "Fields of an infotext that are not read.")
    infotext_styles: Literal["Ignore", "Apply", "Discard", "Apply if any"] = setting(
        "Apply if any", "What becomes of styles that an infotext contains."
    )


class LivePreviews(Section):
    key, title = "ui", "Live previews"

    show_progressbar: bool = setting(True, "Show how far the run is.", effective=False)
    live_previews_enable: bool = setting(True, "Show the picture while it is made.")
    live_previews_image_format: Literal["jpeg", "png", "webp"] = setting("png", "Format of previews.", effective=False)
    show_progress_every_n_steps: int = setting(
        10, "Steps between previews. -1: only the page's clock.", ge=-1, le=32, step=1
    )
    show_progress_type: Literal["Full", "Approx NN", "Approx cheap", "TAESD"] = setting(
        "Approx NN", "How previews are made from the latent.", effective=False
    )
    live_preview_content: Literal["Combined", "Prompt", "Negative prompt"] = setting(
        "Prompt", "Which prediction previews show.", effective=False
    )
    live_preview_refresh_period: int = setting(
        1000, "Milliseconds between previews.", ge=0, le=3_600_000, effective=False
    )
    live_preview_fast_interrupt: bool = setting(False, "An interrupt takes the last preview.", effective=False)


class PromptEditing(Section):
    key, title = "ui_prompt_editing", "Prompt editing"

    keyedit_precision_attention: float = setting(
        0.1, "How much Ctrl+up and Ctrl+down change a weight.", ge=0.01, le=0.2, step=0.001, effective=False
    )
    keyedit_precision_extra: float = setting(
        0.05, "The same for <lora:…>.", ge=0.01, le=0.2, step=0.001, effective=False
    )
    keyedit_delimiters: str = setting(r".,\/!?%^*;:{}=`~() ", "Characters that end a word.", effective=False)
    keyedit_delimiters_whitespace: list[Literal["Tab", "Carriage Return", "Line Feed"]] = setting(
        ["Tab", "Carriage Return", "Line Feed"], "White space that ends a word.", effective=False
    )
    keyedit_move: bool = setting(True, "Alt+left and Alt+right move a part of the prompt.", effective=False)
    disable_token_counters: bool = setting(False, "Show no token counters.", effective=False)
    include_styles_into_token_counters: bool = setting(True, "Count the tokens of styles too.", effective=False)


class Interface(Section):
    key, title = "ui", "Page"

    quicksettings_list: list[str] = setting(
        ["sd_model_checkpoint"],
        "Settings at the top of the page. The checkpoint is always there, VAE and Clip skip unless others are chosen.",
    )
    hidden_tabs: list[str] = setting([], "Tabs that are not shown.", effective=False)
    ui_tab_order: list[str] = setting([], "Order of the tabs.", effective=False)
    localization: str = setting("None", "Language of the page.", effective=False)
    show_progress_in_title: bool = setting(True, "The tab's title shows progress.", effective=False)
    send_seed: bool = setting(True, "Sending a picture to another tab sends its seed.")
    send_size: bool = setting(True, "Sending a picture to another tab sends its size.")
    interrupt_after_current: bool = setting(True, "Interrupt waits for the picture being made.", effective=False)
    samples_log_stdout: bool = setting(False, "Write infotexts to the log.", effective=False)


Modifier = Literal["Shift", "Ctrl", "Alt"]


class CanvasHotkeys(Section):
    key, title = "canvas_hotkey", "Canvas hotkeys"

    canvas_hotkey_zoom: Modifier = setting("Alt", "With the wheel: zoom.")
    canvas_hotkey_adjust: Modifier = setting("Ctrl", "With the wheel: size of the brush.")
    canvas_hotkey_shrink_brush: str = setting("Q", "Smaller brush.")
    canvas_hotkey_grow_brush: str = setting("W", "Larger brush.")
    canvas_hotkey_move: str = setting("F", "Held: the pointer moves the picture.")
    canvas_hotkey_fullscreen: str = setting("S", "Full screen.")
    canvas_hotkey_reset: str = setting("R", "Fit the picture into its place.")
    canvas_hotkey_overlap: str = setting("O", "Let the picture lie over the form.", effective=False)
    canvas_show_tooltip: bool = setting(True, "Show a hint about the keys.", effective=False)
    canvas_auto_expand: bool = setting(True, "Wide pictures take the room that there is.", effective=False)
    canvas_blur_prompt: bool = setting(False, "Drawing takes the focus from the prompt.", effective=False)
    canvas_disabled_functions: list[
        Literal[
            "Zoom", "Adjust brush size", "Hotkey enlarge brush", "Hotkey shrink brush", "Moving canvas", "Fullscreen",
            "Reset Zoom", "Overlap",
        ]
    ] = setting(["Overlap"], "Functions that are off.")  # fmt: skip


class Downloads(Section):
    key, title = "downloads", "Downloads"

    civitai_api_key: str = setting("", "Key of your Civitai account, for models that want a login.", secret=True)
    huggingface_token: str = setting("", "Token of your Hugging Face account, for gated models.", secret=True)

    @field_validator("civitai_api_key", "huggingface_token", mode="after")
    @classmethod
    def _keys_fit_into_a_header(cls, value: str) -> str:
        value = value.strip()
        if not re.fullmatch(r"[\x21-\x7e]{0,512}", value):
            raise ValueError("no key")
        return value


class System(Section):
    key, title = "system", "System"

    api_enable_requests: bool = setting(False, "API images may be URLs.", security=True, effective=False)
    api_forbid_local_requests: bool = setting(True, "URLs of this network are refused.", security=True, effective=False)
    auto_launch_browser: Literal["Disable", "Local", "Remote"] = setting(
        "Local", "Open the browser at the start.", effective=False
    )
    model_trees: list[str] = setting(
        [], "Folders of other programs whose models are used in place, as --model-tree.", path=True
    )
    list_hidden_files: bool = setting(True, "List models in folders whose name starts with a dot.", effective=False)
    disabled_extensions: list[str] = setting([], "Extensions that are switched off.", security=True, effective=False)
    disable_all_extensions: Literal["none", "extra", "all"] = setting(
        "none", "Which are all off.", security=True, effective=False
    )


class Settings(
    SavingPaths,
    SavingImages,
    SavingToDirs,
    Compatibility,
    ExtraNetworks,
    Optimizations,
    SamplerParameters,
    StableDiffusion,
    ImageToImage,
    Upscaling,
    Gallery,
    Infotext,
    LivePreviews,
    PromptEditing,
    Interface,
    CanvasHotkeys,
    Downloads,
    System,
):
    """One frozen snapshot of all settings."""

    def with_overrides(self, mapping: Mapping[str, Any]) -> "Settings":
        """A copy with these values. Raises SettingError at the first key that is unknown or whose value cannot be."""
        for key, value in mapping.items():
            if key not in type(self).model_fields:
                near = get_close_matches(key, type(self).model_fields, n=1)
                raise SettingError(key, value, "there is no such setting", near[0] if near else None)
        try:
            return Settings.model_validate({**self.model_dump(), **mapping})
        except ValidationError as error:
            raise _setting_error(error.errors(include_url=False)[0]) from error

    def overridden(self) -> dict[str, Any]:
        """The settings that differ from their defaults, without secrets: it is written into the rows of jobs."""
        return {key: value for key, value in self.told().items() if value != SETTINGS[key].default}

    def told(self) -> dict[str, Any]:
        """What may be shown: all but the secrets."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in SECRETS}


def refuse_secret(mapping: Mapping[str, Any]) -> None:
    """For what holds for one picture only: no picture depends on a key."""
    for key in mapping:
        if key in SECRETS:
            raise SettingError(key, "…", "is a key, and nothing of a picture", protected=True)


def is_protected(key: str) -> bool:
    info = SETTINGS.get(key)
    return info is not None and (info.path or info.security)


def refuse_protected(mapping: Mapping[str, Any]) -> None:
    """For what comes over HTTP: paths and security cannot be set there."""
    for key, value in mapping.items():
        if is_protected(key):
            reason = "can only be changed in config.json or at the start, not over HTTP"
            raise SettingError(key, value, reason, protected=True)


def _setting_error(detail: ErrorDetails) -> SettingError:
    key = str(detail["loc"][0]) if detail["loc"] else "?"
    info, value = SETTINGS[key], detail["input"]
    if info.secret:
        return SettingError(key, "…", "must be a key: at most 512 visible ASCII characters without spaces")
    limits = {
        (True, True): f"from {_number(info.minimum)} to {_number(info.maximum)}",
        (True, False): f"at least {_number(info.minimum)}",
        (False, True): f"at most {_number(info.maximum)}",
        (False, False): "",
    }[info.minimum is not None, info.maximum is not None]
    if info.choices:
        wanted = ("a list of " if info.type == "list" else "one of ") + ", ".join(info.choices)
    else:
        wanted = _KINDS[info.type] + (f" {limits}" if limits else "")
    near = get_close_matches(value, info.choices or (), n=1) if isinstance(value, str) else []
    return SettingError(key, value, f"must be {wanted}, got {_shown(value)}", near[0] if near else None)


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list of text",
}


def _number(value: float | None) -> str:
    return f"{value:g}" if value is not None else ""


def _shown(value: object) -> str:
    text = ascii(value) if isinstance(value, str | bool | float | None) else type(value).__name__
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if abs(value) < 10**18 else "a huge number"
    return text if len(text) <= 80 else text[:77] + "…"


def _infos() -> dict[str, SettingInfo]:
    owners = {key: section for section in SECTIONS for key in section.__annotations__}
    infos = {}
    for key, field in Settings.model_fields.items():
        extra: Any = field.json_schema_extra
        bounds = {type(limit).__name__: limit for limit in field.metadata}
        kind, choices = _type_and_choices(field.annotation)
        infos[key] = SettingInfo(
            key=key,
            section=owners[key].key,
            section_title=owners[key].title,
            type=kind,
            default=field.default,
            help=field.description or "",
            minimum=getattr(bounds.get("Ge"), "ge", None),
            maximum=getattr(bounds.get("Le"), "le", None),
            choices=choices,
            **extra,
        )
    return infos


def _type_and_choices(annotation: Any) -> tuple[Any, tuple[str, ...] | None]:
    if get_origin(annotation) is Literal:
        return "str", get_args(annotation)
    if get_origin(annotation) is list:
        return "list", _type_and_choices(get_args(annotation)[0])[1]
    return ("str" if annotation == str | None else annotation.__name__), None


SECTIONS: tuple[type[Section], ...] = tuple(base for base in Settings.__bases__ if issubclass(base, Section))
SETTINGS: dict[str, SettingInfo] = _infos()
SECRETS: frozenset[str] = frozenset(key for key, info in SETTINGS.items() if info.secret)
INFOTEXT_SETTINGS: dict[str, str] = {info.infotext: key for key, info in SETTINGS.items() if info.infotext}
