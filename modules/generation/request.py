"""What the user asked for. Plain frozen data: safe to queue, log, store and replay. Both doors, page and HTTP, build
it, and it is validated here only. Knows no torch."""

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from modules.diffusion.names import SAMPLER_INFOS, SCHEDULE_INFOS

MAX_PROMPT = 100_000  # characters
MAX_IMAGES = 1000  # pictures a request
MAX_PIXEL_STEPS = 2048 * 2048 * 150 * 100  # width × height × steps × images: what one request may cost
SEED_LIMIT = 2**63

Text = Annotated[StrictStr, Field(max_length=MAX_PROMPT)]
Size = Annotated[int, Field(strict=True, ge=64, le=2048, multiple_of=8)]
# A whole number stays one: the infotext says 7 for the page's 7, and 7.0 for the API's, as A1111 does.
CfgScale = Annotated[StrictInt | StrictFloat, Field(ge=1, le=30)]
Seed = Annotated[int, Field(strict=True, ge=-1, lt=SEED_LIMIT)]


class GenerationRequest(BaseModel):
    """One txt2img request. A field out of range raises pydantic.ValidationError, which names field, value and limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = ""
    negative_prompt: Text = ""
    checkpoint: StrictStr = ""  # title, name or hash; "": the one that is set in the settings
    sampler: StrictStr = "DPM++ 2M"
    schedule: StrictStr = "Automatic"
    steps: Annotated[int, Field(strict=True, ge=1, le=150)] = 20
    cfg_scale: CfgScale = 7
    width: Size = 512  # pixels
    height: Size = 512  # pixels
    seed: Seed = -1  # -1: pick one when the request is accepted
    batch_size: Annotated[int, Field(strict=True, ge=1, le=8)] = 1  # images at once
    batch_count: Annotated[int, Field(strict=True, ge=1, le=100)] = 1  # rounds
    overrides: dict[str, Any] = {}  # settings for this request only, by their keys
    save: bool = True  # keep the pictures under outputs/, not only for the answer

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        names = {name: info.name for info in SAMPLER_INFOS for name in (info.name, *info.aliases)}
        return _known(value, "sampler", names)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        names = {name: info.label for info in SCHEDULE_INFOS for name in (info.label, info.name, *info.aliases)}
        return _known(value, "schedule type", names)

    @model_validator(mode="after")
    def _affordable(self) -> "GenerationRequest":
        images = self.batch_size * self.batch_count
        if images > MAX_IMAGES:
            raise ValueError(f"batch_size × batch_count must be at most {MAX_IMAGES}, got {images}")
        if self.width * self.height * self.steps * images > MAX_PIXEL_STEPS:
            raise ValueError("width × height × steps × images is too large for one request; ask for less, more often")
        return self


def _known(value: str, kind: str, names: dict[str, str]) -> str:
    by_folded = {name.casefold(): name for name in names}
    found = by_folded.get(value.casefold())
    if found is None:
        near = get_close_matches(value.casefold(), by_folded, n=1, cutoff=0.4)
        hint = f"; did you mean {names[by_folded[near[0]]]!r}?" if near else ""
        raise ValueError(f"no {kind} named {value[:80]!r}{hint}")
    return names[found]
