"""One request becomes pictures: plan → encode → denoise → (hires) → decode → infotext. Read it top-down, like a recipe.

Knows a shelf of models and pictures, and one snapshot of the settings; nothing of queues, files or HTTP.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from PIL import Image
from torch import Tensor

from modules.diffusion.names import SamplerInfo, resolve, sampler_info
from modules.diffusion.noise import ImageNoise, Variation
from modules.diffusion.samplers import Step
from modules.families.family import EDITING, INPAINTING, Model, TextOptions
from modules.families.networks.token_merging import ratio_for
from modules.generation.beside import beside_for
from modules.generation.denoise import CFG_PP_SCALE, Start, Walk, denoise, notes_for
from modules.generation.developing import MOST, Decode
from modules.generation.fields import RunFacts, fields_of, memory_fields, refiner_fields
from modules.generation.guide import Guide
from modules.generation.hires import as_made, enlarge, sizes_of
from modules.generation.img2img_scripts import rounds
from modules.generation.infotext import write
from modules.generation.initial import Initial, Pictures, finished, pictures_of, prepare
from modules.generation.made import GeneratedImage, Picture
from modules.generation.pixels import to_pictures
from modules.generation.plan import Plan, Prompt, split
from modules.generation.progress import Interrupted, Progress, Skipped, Watch
from modules.generation.prompts import Padding, Prompts
from modules.generation.refiner import Handover
from modules.generation.request import GenerationRequest, Init
from modules.generation.rig import Rig
from modules.generation.shelf import Shelf
from modules.generation.skipping import Skipping
from modules.generation.steps import Span, spans
from modules.generation.work import work_of
from modules.library.vaes import VaeFile
from modules.prompt.schedule import Timeline
from modules.runtime.version import VERSION
from modules.settings.schema import Settings

Size = tuple[int, int]  # width, height: pixels
PicturesOf = Callable[[Init, Size, Shelf], Pictures]


def generate(plan: Plan, shelf: Shelf, settings: Settings, watch: Watch) -> Generator[Picture, None, None]:
    """Yields the pictures batch by batch. `watch` is told every step, and may raise Interrupted, Skipped or Stopped.

    Images interrupted before their first step are left out. Raises NotFinite when the model gave no numbers, and
    ValueError with a sentence when the request asks for what is not there.
    """
    plan = replace(plan, request=as_made(plan.request, settings))
    with Rig(shelf, settings, work_of(plan, settings)) as rig:
        pictures = lru_cache(maxsize=1)(partial(pictures_of, settings=settings))  # the same for every batch
        run = partial(run_batch, rig=rig, pictures=pictures, settings=settings)
        for images, stopped in rounds(plan, shelf, settings, watch, run):
            yield from images
            if isinstance(stopped, Interrupted):
                return


# The mode belongs to this function and not to the generator above: it must not reach the code that takes the pictures.
@torch.inference_mode()
def run_batch(
    number: int, plan: Plan, *, rig: Rig, pictures: PicturesOf, shelf: Shelf, settings: Settings, watch: Watch
) -> tuple[Sequence[Picture], Interrupted | Skipped | None]:
    """The pictures of one batch, and what ended it early, if anything did."""

    def sampled() -> tuple[BatchRun, Tensor | None, Interrupted | Skipped | None]:
        run = BatchRun(number, plan, rig, pictures, shelf, settings, watch)
        try:
            return run, run.passes(), None
        except (Interrupted, Skipped) as stop:
            return run, run.latest if rig.is_ready() else None, stop

    run, latents, stopped = rig.attempt(sampled)
    rig.darkroom.settle()  # the batch before, if nobody has asked for it yet
    rig.darkroom.check()
    if latents is None:
        return [], stopped
    if stopped is None and number + 1 < len(plan.batches) and len(run.batch) <= MOST:
        choice = settings.decode_beside_sampling
        rig.resume()
        if choice != "Never" and rig.has_room_beside(anyway=choice == "Always"):
            return run.leave(latents), None
    return rig.attempt(partial(run.finish, latents, complete=stopped is None)), stopped


class BatchRun:
    """One batch on its way. Lives as long as the batch."""

    def __init__(
        self,
        number: int,
        plan: Plan,
        rig: Rig,
        pictures: PicturesOf,
        shelf: Shelf,
        settings: Settings,
        watch: Watch,
    ):
        self.request, self.batch = plan.request, plan.batches[number]
        self.rig, self.shelf, self.settings, self.watch = rig, shelf, settings, watch
        self.pictures = pictures
        self.sizes = sizes_of(self.request)
        self.spans = spans(self.request, settings.img2img_fix_steps)
        self.latest: Tensor | None = None  # the model's last guess at the clean latents
        self.initial: Initial | None = None
        self.vae: VaeFile | None = None  # of the first pass; None: the checkpoint's own
        self.guides: list[Guide] = []  # of the passes, as they come
        self.noted: dict[str, object] = {}  # for the infotext: what sampler, networks and refiner add
        self.warnings: dict[str, None] = {}  # sentences for the user, in order
        total = sum(span.walked for span in self.spans)
        self._report = partial(Progress, batch=number, batches=len(plan.batches), steps=total)
        self._done = 0  # steps of the passes before

    # --- the passes ----------------------------------------------------------------------------------------------

    def passes(self) -> Tensor:
        """(B, C, H/8, W/8). Interrupted and Skipped pass through; `latest` is what there is then."""
        self.watch(self._report("encoding"))
        latents = self.first_pass()
        if self.request.hires is None or self.sizes is None:
            return latents
        self._done += self.spans[0].walked
        return self.second_pass(latents)

    def first_pass(self) -> Tensor:
        request, settings = self.request, self.settings
        size = (request.width, request.height)
        prompts = [split(image.prompt) for image in self.batch]
        self.use(request.checkpoint, prompts, size, second=False)
        self.vae = self.rig.at_work.vae
        start = None
        if request.init:
            pictures = self.pictures(request.init, size, self.shelf)
            self.initial = prepare(pictures, request, self.batch, self.rig.model, settings)
            self.warnings |= dict.fromkeys([self.initial.note] if self.initial.note else [])
            start = Start(
                self.initial.latent,
                self.initial.blend,
                settings.initial_noise_multiplier,
                settings.img2img_extra_noise,
            )
        info = sampler_info(request.sampler)
        timeline = Timeline(calls_of(info, request.steps), old=settings.use_old_scheduling)
        negatives = [image.negative_prompt for image in self.batch]
        scale = request.cfg_scale * (CFG_PP_SCALE if info.cfg_pp else 1)
        calls = calls_of(info, self.spans[0].walked)
        guide = self.guide_of(prompts, negatives, timeline, scale, size, calls, second=False)
        latents = self.walked(info, request.schedule, self.spans[0], size, guide, start)
        return self.initial.settled(latents) if self.initial else latents

    def second_pass(self, latents: Tensor) -> Tensor:
        request, hires, sizes, settings = self.request, self.request.hires, self.sizes, self.settings
        assert hires and sizes
        latents = enlarge(latents, hires.upscaler, sizes, self.batch, self.rig.model, self.shelf, settings)
        self.latest = latents
        use_first = settings.hires_fix_use_firstpass_conds
        prompts = [split(image.prompt if use_first else image.hires_prompt) for image in self.batch]
        negatives = [image.negative_prompt if use_first else image.hires_negative_prompt for image in self.batch]
        self.use(hires.checkpoint or request.checkpoint, prompts, sizes.target, second=True)
        info = sampler_info(hires.sampler or request.sampler)
        first = sampler_info(request.sampler)
        steps, base = hires.steps or request.steps, request.steps
        timeline = Timeline.of_hires_pass(calls_of(info, steps), calls_of(first, base), old=settings.use_old_scheduling)
        scale = (hires.cfg_scale or request.cfg_scale) * (CFG_PP_SCALE if info.cfg_pp else 1)
        calls = calls_of(info, self.spans[1].walked)
        guide = self.guide_of(prompts, negatives, timeline, scale, sizes.target, calls, second=True)
        start = Start(latents.to(self.rig.model.device), extra_noise=settings.img2img_extra_noise)
        return self.walked(info, hires.schedule or request.schedule, self.spans[1], sizes.target, guide, start)

    def walked(
        self, info: SamplerInfo, schedule: str, span: Span, size: Size, guide: Guide, start: Start | None
    ) -> Tensor:
        """Holds no model: when the refiner takes over, nothing may keep the first one in memory."""
        model = self.rig.model
        alphas_cumprod, sdxl = model.alphas_cumprod.to(model.device), model.family.startswith("SDXL")
        walk = Walk(info, schedule, span, self.noise_of(size, info), guide, alphas_cumprod, sdxl, start)
        del model
        try:
            return denoise(walk, self.settings, self.on_step)
        finally:
            guide.release()

    def use(self, checkpoint: str, prompts: list[Prompt], size: Size, second: bool) -> None:
        """The networks of the first prompt are those of its batch, as in A1111."""
        tags = prompts[0].networks if self.request.use_networks else ()
        settings = self.settings
        merging = ratio_for(
            settings.token_merging_ratio,
            settings.token_merging_ratio_img2img,
            settings.token_merging_ratio_hr,
            is_img2img=self.request.init is not None,
            is_hires=second,
        )
        self.rig.use(checkpoint, tags, text_options(settings, size), merging)

    def guide_of(
        self,
        prompts: list[Prompt],
        negatives: list[str],
        timeline: Timeline,
        scale: float,
        size: Size,
        calls: int,
        second: bool,
    ) -> Guide:
        """The model at work under guidance; the refiner takes over where it should. `calls`: of the model."""
        request, rig, settings = self.request, self.rig, self.settings
        told = Prompts(
            [prompt.text for prompt in prompts], negatives, rig.encoder, timeline, padding=padding_of(settings)
        )
        told.encode()
        self.warnings |= dict.fromkeys(rig.warnings())
        if not second:
            self.noted |= rig.notes(told.said())
        seen: dict[str, Tensor | None] = {}  # by checkpoint

        def beside() -> Tensor | None:
            name = rig.checkpoint.name
            if name not in seen:
                seen[name] = beside_for(
                    rig.model, len(self.batch), size[1], size[0], self.initial, settings.inpainting_mask_weight
                )
            return seen[name]

        handover = None
        if request.refiner and wants_refiner(request, settings, second):

            def take_over() -> None:
                assert request.refiner
                told.encode_with(None)
                self.use(request.refiner.checkpoint, prompts, size, second)
                told.encode_with(rig.encoder)
                self.warnings |= dict.fromkeys(rig.warnings())
                self.noted |= refiner_fields(
                    rig.checkpoint.short_title, request.refiner.switch_at, settings, request.hires is not None
                )

            by_steps = settings.refiner_switch_by_sample_steps
            handover = Handover(request.refiner.switch_at, calls if by_steps else None, take_over)
        image_scale = request.init.image_cfg_scale if request.init else 1.5
        skipping = Skipping(calls, settings.skip_early_cond, settings.s_min_uncond, settings.s_min_uncond_all)
        guide = Guide(
            lambda: rig.model,
            told,
            scale,
            beside,
            image_scale,
            handover,
            skipping,
            settings.batch_cond_uncond,
            rig.rows_at_once,
        )
        self.guides.append(guide)
        return guide

    def noise_of(self, size: Size, info: SamplerInfo) -> ImageNoise:
        """Every image's own noise, from its seed."""
        request, latent = self.request, self.rig.model.latent
        variation = None
        if request.variation_strength:
            variation = Variation(tuple(image.variation_seed for image in self.batch), request.variation_strength)
        resize_from = None
        if request.seed_resize_width and request.seed_resize_height:
            resize_from = (request.seed_resize_height // latent.factor, request.seed_resize_width // latent.factor)
        return ImageNoise(
            (latent.channels, size[1] // latent.factor, size[0] // latent.factor),
            [image.seed for image in self.batch],
            self.settings.randn_source,
            self.rig.model.device,
            variation,
            resize_from,
            later_seed_delta=self.settings.eta_noise_seed_delta if info.uses_ensd else 0,
        )

    def on_step(self, step: Step) -> None:
        self.latest = step.denoised
        preview = partial(preview_of, self.rig.model, step.denoised)
        self.watch(self._report("sampling", step=self._done + step.index + 1, preview=preview))

    # --- the pictures --------------------------------------------------------------------------------------------

    def finish(self, latents: Tensor, complete: bool) -> list[GeneratedImage]:
        self.tell_decoding()
        self.rig.resume()
        return self.negative(latents, complete)()

    def leave(self, latents: Tensor) -> Sequence[Picture]:
        """In the darkroom, for others to decode while the next batch is sampled."""
        self.tell_decoding()
        again = partial(self.rig.attempt, partial(self.finish, latents, complete=True))
        return self.rig.darkroom.take(self.batch, self.negative(latents, True), again, self.rig.model.device)

    def tell_decoding(self) -> None:
        report = self._report("decoding")
        self.watch(replace(report, step=report.steps))

    def negative(self, latents: Tensor, complete: bool) -> Decode:
        """What decodes the pictures. All that it needs of the rig is taken now: it may be called while the next batch
        is on its way."""
        model, name, fallback = self.rig.model, self.rig.checkpoint.model_name, self.rig.fallback
        warnings = self.warnings | dict.fromkeys(self.rig.warnings())
        noted, facts = dict(self.noted), self.facts()

        def decoded() -> list[GeneratedImage]:
            pixels = model.decode(latents)  # (B, 3, H, W)
            if not pixels.isfinite().all():
                raise NotFinite(
                    f"{name} gave values that are not numbers (NaN); no picture was made. "
                    "Try --no-half, or --no-half-vae, or another checkpoint."
                )
            sentences, tiles = self.shelf.residence.said()
            told = tuple(warnings | dict.fromkeys(sentences))
            said = replace(facts, noted={**noted, **memory_fields(fallback, tiles), **facts.noted})
            made = []
            for place, (image, picture) in enumerate(zip(self.batch, to_pictures(pixels), strict=True)):
                beside: tuple[tuple[str, Image.Image], ...] = ()
                if self.initial:
                    picture, beside = finished(self.initial, place, picture, latents, self.settings)
                fields = fields_of(self.request, image, said, self.settings)
                text = write(image.prompt, image.negative_prompt, fields)
                made.append(GeneratedImage(image.index, picture, text, image, complete, beside, told))
            return made

        return decoded

    def facts(self) -> RunFacts:
        """What the infotexts say beside the request, and beside what is noted."""
        request, hires = self.request, self.request.hires
        info = sampler_info(request.sampler)
        schedule = resolve(info, request.schedule)
        base = self.shelf.identity(request.checkpoint)
        hires_schedule = "Automatic"
        if hires:
            hires_schedule = resolve(sampler_info(hires.sampler or request.sampler), hires.schedule or request.schedule)
        noted = {**notes_for(info, schedule, self.settings)}
        for guide in self.guides:
            noted |= guide.notes()
        other = hires.checkpoint if hires and hires.checkpoint != request.checkpoint else ""
        return RunFacts(
            checkpoint_name=base.model_name,
            checkpoint_hash=base.shorthash,
            schedule=schedule,
            version=f"easel-v{VERSION}",
            vae_name=self.vae.name if self.vae else None,
            vae_hash=self.vae.shorthash if self.vae else None,
            hires_schedule=hires_schedule,
            hires_checkpoint=self.shelf.identity(other).short_title if other else "",
            sees_mask=self.rig.model.image_channels == INPAINTING,
            edits=self.rig.model.image_channels == EDITING,
            noted=noted,
        )


class NotFinite(ValueError):
    """The networks gave NaN or infinity: a black picture is not a picture."""


def wants_refiner(request: GenerationRequest, settings: Settings, second: bool) -> bool:
    """Whether the refiner may take over in this pass. It never does where it is the checkpoint itself."""
    base = request.hires.checkpoint if second and request.hires and request.hires.checkpoint else request.checkpoint
    if request.refiner is None or request.refiner.checkpoint == base:
        return False
    if request.hires is None:
        return True
    return settings.hires_fix_refiner_pass in ("both passes", "second pass" if second else "first pass")


def calls_of(info: SamplerInfo, steps: int) -> int:
    """How often the sampler calls the model, about: what [from:to:when] in a prompt counts."""
    return steps * 2 if info.second_order else steps


def padding_of(settings: Settings) -> Padding:
    return "v0" if settings.pad_cond_uncond_v0 else "chunks" if settings.pad_cond_uncond else "none"


def text_options(settings: Settings, size: Size) -> TextOptions:
    return TextOptions(
        settings.emphasis,
        settings.CLIP_stop_at_last_layers,
        settings.comma_padding_backtrack,
        width=size[0],
        height=size[1],
        crop_top=settings.sdxl_crop_top,
        crop_left=settings.sdxl_crop_left,
        aesthetic_score=settings.sdxl_refiner_high_aesthetic_score,
        negative_aesthetic_score=settings.sdxl_refiner_low_aesthetic_score,
        clip_l_skip=settings.sdxl_clip_l_skip,
        old_emphasis=settings.use_old_emphasis_implementation,
    )


def preview_of(model: Model, latents: Tensor) -> Image.Image:
    """What the batch looks like by now: one small picture, its images side by side."""
    with torch.inference_mode():
        pictures = to_pictures(model.glimpse(latents))
    width, height = pictures[0].size
    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
