"""Files that hold only a UNet, by the original names with or without their prefix or by those of diffusers: seen as
whole checkpoints, with text encoder and VAE taken from other files. Knows no settings; what may be taken is handed
in."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modules.families import ldm, open_clip, sd2, sdxl
from modules.families.folders import Places, vae_places
from modules.families.hints import LayoutError
from modules.families.text_encoders import PROJECTION
from modules.families.weights import RenamedHeader
from modules.library.header import Header, ModelFileError, printable

PREFIXES = (ldm.UNET, "diffusion_model.", "unet.", "")
MARKERS = ("v_pred", "ztsnr", *sdxl.EDM)  # tensors that tell how a UNet was trained
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}  # by the width of the text
TIMES = 256  # numbers that each of the picture's sizes becomes

# Models without UNet, by a tensor that only they have. The prefixes above may stand before it.
TRANSFORMERS = {
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "single_transformer_blocks.0.attn.to_q.weight": "Flux",
    "joint_blocks.0.context_block.attn.qkv.weight": "SD 3",
    "joint_blocks.0.x_block.attn.qkv.weight": "SD 3",
    "transformer_blocks.0.attn.add_q_proj.weight": "SD 3, or another transformer",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "blocks.0.cross_attn.q.weight": "PixArt or Wan",
    "down_blocks.0.1.channelwise.0.weight": "Stable Cascade",
}


class Wants(NamedTuple):
    """What text encoder a UNet needs."""

    width: int  # of each token's vector, of all text encoders side by side
    added: int | None  # numbers beside the timestep, in families that have them
    linear: bool  # its transformers begin with linear layers, as in SD 2.x and later

    @property
    def family(self) -> str:
        return FAMILIES.get(self.width, f"a family whose text is {self.width} wide")


@dataclass(frozen=True)
class Sources:
    """Where parts may be taken from, in order."""

    checkpoints: Callable[[], Iterable[Path]] = tuple
    text_encoders: tuple[Path, ...] = ()  # that the user chose
    vae: Path | None = None  # that the user chose; taken where no checkpoint has one


@dataclass(frozen=True)
class Completed:
    header: Header
    taken: Mapping[str, str] = field(default_factory=dict)  # "Text encoder from", "VAE from": names of files
    files: tuple[Path, ...] = ()  # those


def is_unet_only(header: Header) -> bool:
    """Whether there is a UNet and no text encoder."""
    return unet_prefix(header) is not None and not any(is_text(name) for name in header.tensors)


def is_xl(header: Header) -> bool:
    """Whether its UNet takes numbers beside the timestep, as SDXL's and its refiner's do."""
    ends = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")
    return any(name.endswith(ends) for name in header.tensors)


def unet_prefix(header: Header) -> str | None:
    """What stands before a UNet's names; None: there is no UNet."""
    return next((prefix for prefix in PREFIXES if any(f"{prefix}{name}" in header.tensors for name in FIRST)), None)


FIRST = ("input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight")  # of the original names; of diffusers'


def is_text(name: str) -> bool:
    return name.startswith(("cond_stage_model.", "conditioner."))


def other_kind(header: Header) -> str | None:
    """What a file without a UNet is for, as far as its tensors tell."""
    architecture = header.metadata.get("general.architecture")  # of GGUF
    for prefix in (*PREFIXES, "model.diffusion_model.", "transformer."):
        for name, kind in TRANSFORMERS.items():
            if prefix + name in header.tensors:
                return kind
    return f"{printable(architecture[:40])!r}" if architecture not in (None, "sd1", "sdxl") else None


def completed(path: Path, header: Header, sources: Sources, header_of: Callable[[Path], Header]) -> Completed:
    """A UNet-only file's header with everything that a checkpoint has; another's as it is. Raises ModelFileError with
    what is missing."""
    if not is_unet_only(header):
        return Completed(header)
    try:
        places = unet_places(path, header)
        wants = wants_of({name: place[1].tensors[place[2]].shape for name, place in places.items()})
    except LayoutError as error:
        raise ModelFileError(path, str(error)) from None
    return _Completion(path, header, wants, sources, header_of).of(places)


def unet_places(path: Path, header: Header) -> Places:
    """By the original names, with the prefix that they have in whole checkpoints."""
    prefix = unet_prefix(header)
    assert prefix is not None
    own = {name.removeprefix(prefix): _place(path, header, name) for name in header.tensors if name.startswith(prefix)}
    if FIRST[0] in own:
        places = {ldm.UNET + name: place for name, place in own.items()}
    else:
        own = {name: place for name, place in own.items() if "." in name}
        layers = ldm.count(own, r"down_blocks\.0\.resnets\.(\d+)\.")
        places = {theirs: own[name] for name, theirs in ldm.unet_names(own, layers)}
    for marker in MARKERS:
        if marker in header.tensors:
            places[marker] = _place(path, header, marker)
    return places


def wants_of(shapes: Mapping[str, tuple[int, ...]]) -> Wants:
    """By the original names. Raises LayoutError."""
    own = {name.removeprefix(ldm.UNET): shape for name, shape in shapes.items() if name.startswith(ldm.UNET)}
    keys = next((shape for name, shape in own.items() if name.endswith("attn2.to_k.weight") and len(shape) > 1), None)
    if keys is None:
        raise LayoutError("the UNet has no cross-attention: it can't be steered by a prompt")
    added = own.get("label_emb.0.0.weight")
    linear = any(name.endswith("proj_in.weight") and len(shape) == 2 for name, shape in own.items())
    return Wants(keys[1], added[1] if added and len(added) > 1 else None, linear)


class _Completion:
    """Of one file."""

    def __init__(self, path: Path, header: Header, wants: Wants, sources: Sources, header_of: Callable[[Path], Header]):
        self.path, self.header, self.wants, self.sources, self._header_of = path, header, wants, sources, header_of
        self._like: tuple[Path, Header] | None | bool = False  # False: not looked for yet

    def of(self, unet: Places) -> Completed:
        text, text_files, sizes = self._text()
        vae, vae_files, metadata = self._vae()
        sizes = {**sizes, "unet": sizes_in(self.header).get("unet") or self._heads(unet)}
        sizes |= {key: value for key, value in sizes_in(self.header).items() if key == "zero_terminal_snr"}
        metadata = {**metadata, **self.header.metadata, "easel.config": json.dumps(sizes)}
        taken = {"Text encoder from": _names(text_files), "VAE from": _names(vae_files)}
        files = tuple(dict.fromkeys((*text_files, *vae_files)))
        header = RenamedHeader({**unet, **text, **vae}, metadata, self.header.size)
        return Completed(header, {part: names for part, names in taken.items() if names}, files)

    def _text(self) -> tuple[Places, tuple[Path, ...], dict[str, Any]]:
        """Its tensors, the files that they are in, and its sizes that shapes don't tell."""
        found = chosen_text(self.wants, [(path, self._header_of(path)) for path in self.sources.text_encoders])
        if found:
            places, files = found
            return places, files, {}
        if like := self.like:
            path, header = like
            places = {name: _place(path, header, name) for name in header.tensors if is_text(name)}
            return places, (path,), {k: v for k, v in sizes_in(header).items() if k.startswith("text_encoder")}
        raise ModelFileError(self.path, self._missing("text encoder"))

    def _heads(self, unet: Places) -> dict[str, Any]:
        """As many as the checkpoint beside says, if its UNet begins as wide as this one; most files don't say."""
        first, like = ldm.UNET + FIRST[0], self.like
        if like is None or like[1].tensors[first].shape[0] != unet[first][1].tensors[unet[first][2]].shape[0]:
            return {}
        found: dict[str, Any] = sizes_in(like[1]).get("unet") or {}
        return found

    def _vae(self) -> tuple[Places, tuple[Path, ...], Mapping[str, str]]:
        """Its tensors, the file that they are in, and what it says of previews."""
        own = {name: _place(self.path, self.header, name) for name in self.header.tensors if name.startswith(ldm.VAE)}
        if f"{ldm.VAE}decoder.conv_in.weight" in own:
            return own, (), {}
        if like := self.like:  # before the chosen one, which goes into its place for the time of a run
            path, header = like
            places = {name: _place(path, header, name) for name in header.tensors if name.startswith(ldm.VAE)}
            preview = {key: value for key, value in header.metadata.items() if key == "easel.preview"}
            return places, (path,), preview
        if self.sources.vae is not None:
            return _vae_in(self.sources.vae, self._header_of(self.sources.vae)), (self.sources.vae,), {}
        raise ModelFileError(self.path, self._missing("VAE"))

    @property
    def like(self) -> tuple[Path, Header] | None:
        """The first whole checkpoint whose UNet wants the same text."""
        if isinstance(self._like, bool):
            self._like = next(self._alike(), None)
        return self._like

    def _alike(self) -> Iterator[tuple[Path, Header]]:
        for path in self.sources.checkpoints():
            if path == self.path:
                continue
            try:
                header = self._header_of(path)
                if is_whole(header) and wants_of({n: i.shape for n, i in header.tensors.items()}) == self.wants:
                    yield path, header
            except (ModelFileError, LayoutError):
                continue  # it says so itself where it is listed

    def _missing(self, part: str) -> str:
        family = self.wants.family
        files = {"SDXL": "CLIP-L and CLIP-G", "SDXL refiner": "CLIP-G", "SD 2.x": "OpenCLIP-H"}.get(family, "CLIP-L")
        choice = "a VAE in the setting sd_vae"
        if part == "text encoder":
            choice = f"{files} from models/text_encoder in the setting sd_text_encoders"
        return (
            f"this file has only the UNet of {family}, and there is no {part} for it: add a whole checkpoint of that "
            f"family, of which it is taken, or choose {choice}"
        )


def is_whole(header: Header) -> bool:
    names = header.tensors
    has_text = any(is_text(name) for name in names)
    return f"{ldm.UNET}{FIRST[0]}" in names and f"{ldm.VAE}decoder.conv_in.weight" in names and has_text


def chosen_text(wants: Wants, files: Iterable[tuple[Path, Header]]) -> tuple[Places, tuple[Path, ...]] | None:
    """Those of the chosen text encoders that fit, under the names that they have in whole checkpoints; None: none do.
    Raises ModelFileError for a file that is no text encoder."""
    found = [text_encoder(path, header) for path, header in files]
    if wants.added is None:
        prefix = sd2.TEXT if wants.linear else ldm.TEXT
        one = next((text for text in found if text.width == wants.width and text.native <= wants.linear), None)
        return (one.places(prefix), (one.path,)) if one else None
    for big in found:
        if big.projection is None:
            continue
        if big.width == wants.width and big.projection + 5 * TIMES == wants.added:
            return big.places(sdxl.REFINERS_BIG_G), (big.path,)
        for small in found:
            fits = small.width + big.width == wants.width and big.projection + 6 * TIMES == wants.added
            if fits and small is not big and not small.native:
                return {**small.places(sdxl.CLIP_L), **big.places(sdxl.BIG_G)}, (small.path, big.path)
    return None


@dataclass(frozen=True)
class TextEncoderFile:
    path: Path
    header: Header
    prefix: str  # before its names
    native: bool  # of OpenCLIP's own names
    width: int
    projection: int | None  # width of the vector that a whole text becomes

    def places(self, prefix: str) -> Places:
        names = (name for name in self.header.tensors if name.startswith(self.prefix))
        own = {name.removeprefix(self.prefix): _place(self.path, self.header, name) for name in names}
        if not self.native:  # transformers has stopped to call them text_model
            own = {name if name == PROJECTION else f"{MODEL}{name.removeprefix(MODEL)}": at for name, at in own.items()}
        return {prefix + name: at for name, at in own.items()}


MODEL = "text_model."
WORDS = "embeddings.token_embedding.weight"


def text_encoder(path: Path, header: Header) -> TextEncoderFile:
    """Raises ModelFileError for a file that holds none."""
    names = header.tensors
    for prefix in ("", "text_encoder.", "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."):
        native = open_clip.is_native(header, prefix)
        words = next((n for m in (MODEL, "") if (n := prefix + m + WORDS) in names), f"{prefix}token_embedding.weight")
        if words not in names or len(names[words].shape) != 2:
            continue
        projection = names.get(f"{prefix}text_projection" if native else prefix + PROJECTION)
        across = projection.shape[1 if native else 0] if projection and len(projection.shape) == 2 else None
        return TextEncoderFile(path, header, prefix, native, names[words].shape[1], across)
    raise ModelFileError(
        path, f"this is no CLIP text encoder; it has tensors such as {printable(next(iter(names))[:80])!r}"
    )


def sizes_in(header: Header) -> dict[str, Any]:
    """What our own files and diffusers' folders say of heads and the like (hints.py)."""
    try:
        sizes = json.loads(header.metadata.get("easel.config", "{}"))
    except ValueError:
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _vae_in(path: Path, header: Header) -> Places:
    prefix = ldm.VAE if any(name.startswith(ldm.VAE) for name in header.tensors) else ""
    if any(name.startswith("encoder.down_blocks.") for name in header.tensors):
        return vae_places({name: _place(path, header, name) for name in header.tensors}, ldm.VAE)
    names = (name for name in header.tensors if name.startswith(prefix))
    return {ldm.VAE + name.removeprefix(prefix): _place(path, header, name) for name in names}


def _place(path: Path, header: Header, name: str) -> tuple[Path, Header, str]:
    return header.places[name] if isinstance(header, RenamedHeader) else (path, header, name)


def _names(files: Iterable[Path]) -> str:
    return ", ".join(printable(path.stem) for path in files)
