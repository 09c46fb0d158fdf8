"""What the user asked for. Plain frozen data: safe to queue, log, store and replay. Both doors, page and HTTP, build
it, and it is validated here only. txt2img is a request without `init`. Knows no torch."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS

MAX_PROMPT = 100_000  # characters
MAX_IMAGES = 1000  # pictures a request
MAX_PIXEL_STEPS = 2048 * 2048 * 150 * 100  # width × height × steps × images: what one request may cost
MAX_SIDE = 4096  # pixels, of what hires fix makes
SEED_LIMIT = 2**63

Text = Annotated[StrictStr, Field(max_length=MAX_PROMPT)]
Size = Annotated[int, Field(strict=True, ge=64, le=2048, multiple_of=8)]
# A whole number stays one: the infotext says 7 for the page's 7, and 7.0 for the API's, as A1111 does.
Number = StrictInt | StrictFloat
CfgScale = Annotated[Number, Field(ge=1, le=30)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Seed = Annotated[int, Field(strict=True, ge=-1, lt=SEED_LIMIT)]
Steps = Annotated[int, Field(strict=True, ge=1, le=150)]
Picture = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]  # its id in the store of input pictures

ResizeMode = Literal["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]
RESIZE_MODES: tuple[ResizeMode, ...] = (
    "Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)",
)  # fmt: skip  # their numbers in the API are the places here
MASKED_CONTENTS: tuple[MaskedContent, ...] = ("fill", "original", "latent noise", "latent nothing")
Curve = Literal["Aggressive", "Linear", "Lazy"]
CURVES: tuple[Curve, ...] = ("Aggressive", "Linear", "Lazy")


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SoftInpainting(Part):
    """Blends the old and the new picture by how much they differ, instead of along the mask's edge."""

    mask_blend_power: Annotated[Number, Field(ge=0, le=8)] = 1
    mask_blend_scale: Annotated[Number, Field(ge=0, le=8)] = 0.5  # preservation strength
    inpaint_detail_preservation: Annotated[Number, Field(ge=1, le=32)] = 4  # transition contrast boost
    composite_mask_influence: Annotated[Number, Field(ge=0, le=1)] = 0
    composite_difference_threshold: Annotated[Number, Field(ge=0, le=8)] = 0.5
    composite_difference_contrast: Annotated[Number, Field(ge=0, le=8)] = 2


class Mask(Part):
    """What of the init image is painted anew: where the mask is white."""

    image: Picture
    blur_x: Annotated[int, Field(strict=True, ge=0, le=64)] = 4  # pixels
    blur_y: Annotated[int, Field(strict=True, ge=0, le=64)] = 4  # pixels
    content: MaskedContent = "original"  # what the masked part starts from
    invert: bool = False
    only_masked: bool = False  # work on the masked part alone, enlarged to the request's size
    padding: Annotated[int, Field(strict=True, ge=0, le=256)] = 32  # pixels around it, with only_masked
    round: bool = True  # half-transparent parts of the mask count as masked or not
    soft: SoftInpainting | None = None


class SdUpscale(Part):
    """The init image is enlarged, then painted anew tile by tile; a tile is as large as the request, and batch_size of
    them are painted at once."""

    name: Literal["SD upscale"] = "SD upscale"
    overlap: Annotated[int, Field(strict=True, ge=0, le=256)] = 64  # pixels
    upscaler: Annotated[StrictStr, Field(min_length=1)] = "None"  # "None": the picture keeps its size
    scale: Annotated[Number, Field(ge=1, le=4)] = 2


class Loopback(Part):
    """Every picture is the init image of the next; the first loop has the request's denoising strength."""

    name: Literal["Loopback"] = "Loopback"
    loops: Annotated[int, Field(strict=True, ge=1, le=32)] = 4
    final_denoising_strength: Fraction = 0.5  # of the last loop
    curve: Curve = "Linear"  # how it gets there


class Init(Part):
    """The pictures that img2img starts from."""

    images: Annotated[tuple[Picture, ...], Field(min_length=1, max_length=8)]  # one, or one for each of a batch
    denoising_strength: Fraction = 0.75
    resize_mode: ResizeMode = "Just resize"
    image_cfg_scale: Annotated[Number, Field(ge=0, le=30)] = 1.5  # of instruct-pix2pix
    mask: Mask | None = None
    script: Annotated[SdUpscale | Loopback, Field(discriminator="name")] | None = None

    @model_validator(mode="after")
    def _fits_its_script(self) -> "Init":
        if self.script and len(self.images) > 1:
            raise ValueError(f"{self.script.name} starts from one picture, got {len(self.images)}")
        if isinstance(self.script, SdUpscale) and self.mask:
            raise ValueError("SD upscale paints the whole picture anew; leave the mask out")
        return self


class Hires(Part):
    """A second pass at a larger size. What is empty or 0 is as in the first pass."""

    upscaler: StrictStr = "Latent"
    denoising_strength: Fraction = 0.7
    scale: Annotated[Number, Field(ge=1, le=8)] = 2
    resize_width: Annotated[int, Field(strict=True, ge=0, le=MAX_SIDE, multiple_of=8)] = 0  # pixels; instead of scale
    resize_height: Annotated[int, Field(strict=True, ge=0, le=MAX_SIDE, multiple_of=8)] = 0
    steps: Annotated[int, Field(strict=True, ge=0, le=150)] = 0
    cfg_scale: Annotated[Number, Field(ge=0, le=30)] = 0
    checkpoint: StrictStr = ""
    sampler: StrictStr = ""
    schedule: StrictStr = ""
    prompt: Text = ""
    negative_prompt: Text = ""

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        return known_sampler(value) if value else value

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        return known_schedule(value) if value else value


class Refiner(Part):
    """Another checkpoint takes over at a part of the schedule."""

    checkpoint: Annotated[StrictStr, Field(min_length=1)]
    switch_at: Annotated[Number, Field(ge=0.01, le=1)] = 0.8


class GenerationRequest(BaseModel):
    """One request. A field out of range raises pydantic.ValidationError, which names field, value and limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: Annotated[tuple[StrictStr, ...], Field(max_length=100)] = ()  # by name; unknown ones are left out
    checkpoint: StrictStr = ""  # title, name or hash; "": the one that is set in the settings
    sampler: StrictStr = "DPM++ 2M"
    schedule: StrictStr = "Automatic"
    steps: Steps = 20
    cfg_scale: CfgScale = 7
    width: Size = 512  # pixels
    height: Size = 512  # pixels
    seed: Seed = -1  # -1: pick one when the request is accepted
    variation_seed: Seed = -1
    variation_strength: Fraction = 0
    seed_resize_width: Annotated[int, Field(strict=True, ge=0, le=2048)] = 0  # pixels; 0: the noise is of this size
    seed_resize_height: Annotated[int, Field(strict=True, ge=0, le=2048)] = 0
    batch_size: Annotated[int, Field(strict=True, ge=1, le=8)] = 1  # images at once
    batch_count: Annotated[int, Field(strict=True, ge=1, le=100)] = 1  # rounds
    init: Init | None = None
    hires: Hires | None = None
    refiner: Refiner | None = None
    use_networks: bool = True  # False: <lora:…> and its like are taken out of the prompt and do nothing
    overrides: dict[str, Any] = {}  # settings for this request only, by their keys
    save: bool = True  # keep the pictures under outputs/, not only for the answer

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        return known_sampler(value)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        return known_schedule(value)

    @model_validator(mode="after")
    def _fits_together(self) -> "GenerationRequest":
        if self.init and self.hires:
            raise ValueError("hires fix is for txt2img; an img2img request cannot have it")
        if self.init and self.init.mask and self.init.resize_mode == RESIZE_MODES[3]:
            raise ValueError("latent upscale cannot be used with a mask; choose another resize mode")
        if self.init and len(self.init.images) not in (1, self.batch_size):
            raise ValueError(
                f"as many init images as batch_size ({self.batch_size}) or one are needed, got {len(self.init.images)}"
            )
        script = self.init and self.init.script
        if isinstance(script, SdUpscale) and script.overlap >= min(self.width, self.height):
            raise ValueError(
                f"tiles of {self.width}x{self.height} pixels must overlap by less than a tile, got {script.overlap}"
            )
        if self.seed_resize_width % 8 or self.seed_resize_height % 8:
            raise ValueError(
                "seed_resize_width and seed_resize_height must be multiples of 8, "
                f"got {self.seed_resize_width}x{self.seed_resize_height}"
            )
        return self

    @model_validator(mode="after")
    def _affordable(self) -> "GenerationRequest":
        images = self.image_count
        if images > MAX_IMAGES:
            factors = "loops" if self.round_size != self.batch_size else "batch_size"
            raise ValueError(f"{factors} × batch_count must be at most {MAX_IMAGES}, got {images}")
        pixel_steps = self.width * self.height * self.steps
        if self.hires:
            width, height = (
                side or round(own * self.hires.scale)
                for side, own in ((self.hires.resize_width, self.width), (self.hires.resize_height, self.height))
            )
            if max(width, height) > MAX_SIDE:
                raise ValueError(f"hires fix makes pictures of at most {MAX_SIDE} pixels a side, got {width}x{height}")
            pixel_steps += width * height * (self.hires.steps or self.steps)
        if pixel_steps * images > MAX_PIXEL_STEPS:
            raise ValueError("width × height × steps × images is too large for one request; ask for less, more often")
        return self

    @property
    def round_size(self) -> int:
        """How many pictures come of one round."""
        script = self.init and self.init.script
        if isinstance(script, Loopback):
            return script.loops
        return 1 if script else self.batch_size

    @property
    def image_count(self) -> int:
        """How many pictures it makes."""
        return self.round_size * self.batch_count

    @property
    def varies_one_seed(self) -> bool:
        """Its pictures share a seed, and each has a variation of its own."""
        return self.variation_strength > 0 and not (self.init and self.init.script)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The ids of all pictures that it starts from."""
        if self.init is None:
            return ()
        return (*self.init.images, *((self.init.mask.image,) if self.init.mask else ()))


def known_sampler(value: str) -> str:
    """The name of a sampler by any of its names. Raises ValueError with the nearest match."""
    names = {name: info.name for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
    return _known(value, "sampler", names)


def known_schedule(value: str) -> str:
    names = {name: info.label for info in SCHEDULE_INFOS for name in (info.label, info.name, *info.aliases)}
    return _known(value, "schedule type", names)


def _known(value: str, kind: str, names: dict[str, str]) -> str:
    by_folded = {name.casefold(): name for name in names}
    found = by_folded.get(value.casefold())
    if found is None:
        near = get_close_matches(value.casefold(), by_folded, n=1, cutoff=0.4)
        hint = f"; did you mean {names[by_folded[near[0]]]!r}?" if near else ""
        raise ValueError(f"no {kind} named {value[:80]!r}{hint}")
    return names[found]
