"""The header's checkpoint choice, and what the page knows of a checkpoint before it is loaded: the size that it was
made for and words that it knows, both read from files beside or in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.library.header import Header, ModelFileError, read_header
from modules.library.recommended import USUAL, family_of, recommended
from modules.web.choices import checkpoints, selected, vaes
from modules.web.filling import reply
from modules.web.form import CHECKPOINTS, SAME, Form, sentence
from modules.web.parts import QUICK, dropdown, icon_button

if TYPE_CHECKING:
    from modules.app import App
    from modules.library.checkpoints import Checkpoint

USUAL_SIZE = (512, 512)
MAX_WORDS_FILE = 64_000  # bytes


def checkpoint_choice(app: "App") -> tuple[gr.Dropdown, gr.Button]:
    titles, selected = checkpoints(app)
    # A title grows a hash meanwhile, hence custom values; the library knows both, and refuses all else.
    choice = dropdown("checkpoint", "setting_sd_model_checkpoint", titles, selected, allow_custom_value=True)
    return choice, icon_button("refresh_checkpoints", "refresh", "refresh_sd_model_checkpoint")


def bind_checkpoint_choice(
    app: "App", forms: Sequence[Form], refresh: gr.Button, vae: gr.Dropdown | None, answer: gr.Button
) -> None:
    """The button looks for VAEs too, where the header shows them."""
    checkpoint = forms[0].fields["checkpoint"]
    followers = [form.fields[name] for form in forms for name in FOLLOWERS]
    checkpoint.input(_chooser(app), [checkpoint, *followers], [answer, checkpoint, *followers], **QUICK)
    others = [(name, form.fields[name]) for form in forms for name in CHECKPOINTS[1:] if name in form.fields]
    outputs = [checkpoint, *(component for _, component in others), *([vae] if vae else [])]
    refresh.click(_refresher(app, [name for name, _ in others], vae is not None), None, outputs, **QUICK)


@dataclass(frozen=True)
class Defaults:
    """What the boxes say before anybody has touched them."""

    size: tuple[int, int] = USUAL_SIZE
    sampling: tuple[str, str, int, float] = ("DPM++ 2M", "Automatic", 20, 7)  # sampler, schedule, steps, CFG scale


def defaults(app: "App") -> Defaults:
    current = selected(app)
    return defaults_of(current) if current else Defaults()


def defaults_of(checkpoint: "Checkpoint") -> Defaults:
    """As its kind wants it: LCM, Turbo and Lightning checkpoints make nothing good of the usual values."""
    advice = recommended(checkpoint)
    scale = int(advice.cfg_scale) if advice.cfg_scale.is_integer() else advice.cfg_scale
    return Defaults(size_of(checkpoint), (advice.sampler, advice.schedule, advice.steps, scale))


FOLLOWERS = ("width", "height", "sampler", "schedule", "steps", "cfg_scale")  # fields that follow the checkpoint


def _chooser(app: "App") -> Callable[..., Any]:
    def choose(title: str, *values: Any) -> Any:
        """A size, and ways of sampling, that nobody touched follow the checkpoint; what somebody chose stays. The list
        shows what is in use, whatever was asked of it."""
        before = defaults(app)
        try:
            after = defaults_of(app.use_checkpoint(title))
        except ValueError as error:  # it is gone since the list was made
            titles, current = checkpoints(app)
            return reply([sentence(str(error))]), gr.update(choices=titles, value=current), *[gr.skip()] * len(values)
        count = len(FOLLOWERS)
        forms = (values[i : i + count] for i in range(0, len(values), count))
        return gr.skip(), gr.skip(), *(value for form in forms for value in followed(form, before, after))

    return choose


def followed(form: Sequence[Any], before: Defaults, after: Defaults) -> list[Any]:
    """Of one tab, in the order of FOLLOWERS."""
    size = after.size if tuple(form[:2]) == before.size else (gr.skip(), gr.skip())
    sampling = after.sampling if tuple(form[2:]) == before.sampling else [gr.skip()] * 4
    return [*size, *sampling]


def _refresher(app: "App", others: list[str], with_vaes: bool) -> Callable[[], Any]:
    def refresh() -> Any:
        app.library.refresh()
        app.vaes.refresh()
        titles, current = checkpoints(app)
        lists = [[SAME[name], *titles] if name in SAME else titles for name in others]
        lists += [vaes(app)] if with_vaes else []
        return gr.update(choices=titles, value=current), *(gr.update(choices=choices) for choices in lists)

    return refresh


def facts_of(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What the page's script knows of it."""
    words, additions = words_of(checkpoint)
    return {"size": size_of(checkpoint), "words": words, "additions": additions, "edits": edits(checkpoint)}


def size_of(checkpoint: "Checkpoint") -> tuple[int, int]:
    """The size that the checkpoint was trained for: as its metadata say, or its family."""
    header = _header(checkpoint.path, checkpoint.mtime_ns)
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", header.metadata.get("modelspec.resolution", "")) if header else None
    if not found:
        usual = USUAL[family_of(header) if header else None]
        return usual.width, usual.height
    width, height = (min(2048, max(64, int(side) // 8 * 8)) for side in found.groups())
    return width, height


def edits(checkpoint: "Checkpoint") -> bool:
    """Whether it is an instruct-pix2pix: its UNet takes the picture's latent beside its own."""
    header = _header(checkpoint.path, checkpoint.mtime_ns)
    first = header.tensors.get("model.diffusion_model.input_blocks.0.0.weight") if header else None
    return first is not None and len(first.shape) == 4 and first.shape[1] == 8


@lru_cache(maxsize=4096)
def _header(path: Path, mtime_ns: int) -> Header | None:
    try:
        header = read_header(path)
    except (ModelFileError, OSError):
        return None
    telling = ("input_blocks.0.0.weight", "ln_final.weight")
    kept = {name: tensor for name, tensor in header.tensors.items() if name.endswith(telling)}
    return replace(header, tensors=kept)  # all that is asked of it: a thousand headers are large


def words_of(checkpoint: "Checkpoint") -> tuple[list[str], list[str]]:
    """What `<name>.words.txt` beside a checkpoint lists, one a line: prompts that a small checkpoint was taught, and,
    after a plus sign, what can be added to any of them, like "+ 3d style"."""
    try:
        with checkpoint.path.with_suffix(".words.txt").open("rb") as file:
            written = file.read(MAX_WORDS_FILE).decode("utf-8", errors="replace")
    except OSError:
        return [], []
    lines = [line.strip() for line in written.splitlines() if line.strip() and not line.startswith("#")]
    additions = [line[1:].strip() for line in lines if line.startswith("+")]
    return [line for line in lines if not line.startswith("+")], additions
