"""What the header of a model file tells, without reading a weight: what kind of model it is, of which family, in which
numbers; and an id made of its content, which stays when the file is moved or renamed. Says "" where a file tells
nothing: a family is never guessed from a name."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from modules.library import folders, gguf
from modules.library.header import DTYPE_BITS, Header, ModelFileError, open_regular, read_header
from modules.library.kinds import KINDS as KINDS
from modules.library.kinds import Kind as Kind
from modules.library.upscalers import architecture, shapes

Shapes = Mapping[str, tuple[int, ...]]  # of a pickled file () each: only its names are known

HEAD = 8 * 1024  # bytes of a file that its id is made of, with its size and
SAMPLE = 4096  # bytes at some places, one more for each
SAMPLE_EVERY = 256 * 2**20  # bytes, so that another VAE inside of a checkpoint is seen
PICKLED_NAMES = 4 * 2**20  # bytes of a .ckpt in which the names of its tensors stand
UNET = "model.diffusion_model."
FLOWS = ("SD 3.x", "FLUX.1", "FLUX.2", "Chroma", "Lumina 2", "Qwen-Image")  # families that predict a flow
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL refiner", 2048: "SDXL"}  # of what cross attention looks at


class Facts(NamedTuple):
    content: str = ""  # 20 hex digits: the same for the same content
    format: str = ""  # safetensors, PyTorch, diffusers, GGUF
    family: str = ""  # SD 1.x, SD 2.x, SDXL, SDXL refiner, SD 3.x, FLUX.1, …; of a text encoder CLIP-L, T5-XXL, …
    dtype: str = ""  # of most of its numbers, as safetensors calls it: F16
    prediction: str = ""  # epsilon, v, flow
    base_model: str = ""  # what it was trained on, as it says itself
    resolution: str = ""  # 1024x1024, as it says itself
    kind: str = ""  # what it is by its content: a Kind, or "" for none of them
    pictured: str = ""  # "yes": its metadata hold a picture of what it does


def look(path: Path) -> Facts:
    """Of any file or diffusers folder. Reads a header, and a few KiB of the rest. Raises ModelFileError."""
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.rstrip().lower()
    if suffix == ".safetensors":
        found = of_header(read_header(path))
    elif suffix == gguf.SUFFIX:
        found = of_header(gguf.read_gguf_header(path))._replace(format="GGUF")
    else:
        found = Facts(format="PyTorch")
    handle = open_regular(path)
    try:
        size = os.fstat(handle).st_size
        head = os.read(handle, HEAD)
        if found.format == "PyTorch":
            names = pickled_names(head + os.read(handle, PICKLED_NAMES))
            kind = kind_of(names)
            found = found._replace(kind=kind, family=family_of(names, kind), prediction=_usual(family_of(names, kind)))
        return found._replace(content=content_id(handle, size, head))
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(handle)


def of_header(header: Header) -> Facts:
    """All but the id."""
    sizes, metadata = shapes(header), header.metadata
    kind = kind_of(sizes)
    family = family_of(sizes, kind) or stated_family(metadata)
    stated = metadata.get("modelspec.prediction_type", "").lower()
    prediction = "v" if "v_pred" in sizes or stated.startswith("v") else "epsilon" if stated.startswith("e") else ""
    return Facts(
        format="safetensors",
        family=family,
        dtype=_most(header),
        prediction=prediction or _usual(family),
        base_model=stated_base(metadata),
        resolution=stated_resolution(metadata),
        kind=kind,
        pictured=pictured(metadata),
    )


def content_id(handle: int, size: int, head: bytes) -> str:
    """`head`: its first bytes. Two files that differ only between the samples get one id; their sha256 tells."""
    digest = hashlib.sha256(size.to_bytes(8, "little") + head[:HEAD])
    if size > HEAD:
        count = 2 + size // SAMPLE_EVERY
        for number in range(1, count + 1):
            os.lseek(handle, max(HEAD, (size - SAMPLE) * number // count), os.SEEK_SET)
            digest.update(os.read(handle, SAMPLE))
    return digest.hexdigest()[:20]


def kind_of(sizes: Shapes) -> str:
    """By the names of its tensors: a Kind, or "" for something else."""
    names = "\n".join(sizes)
    for kind, pattern in _KINDS:
        if pattern.search(names):
            if kind == "checkpoint" and not _PARTS.search(names):
                return "unet"
            return kind
    if all(sizes.values()) and architecture(sizes):
        return "upscaler"
    return "embedding" if len(sizes) <= 4 and all(name in _EMBEDDINGS for name in sizes) else ""


_KINDS = tuple(
    (kind, re.compile(pattern, re.MULTILINE))
    for kind, pattern in (
        ("controlnet", r"^(control_model|controlnet\w*|input_hint_block|lllite_unet\w*|adapter\.body|ip_adapter)\."),
        ("controlnet", r"^(body\.\d+\.(block1|resnets|in_conv)|image_proj|lllite_unet)"),
        ("lora", r"(lora_(up|down|mid|A|B)\b|\.lora\.(up|down)\.|\.hada_w[12]_|\.lokr_w[12]|\.oft_(blocks|diag))"),
        ("lora", r"^lora_\w+\.(diff|diff_b|on_input|a1)"),
        ("checkpoint", rf"^{re.escape(UNET)}"),
        ("unet", r"^(input_blocks\.0\.0|double_blocks\.0|joint_blocks\.0|(single_)?transformer_blocks\.0)\."),
        ("unet", r"^(down_blocks\.0\.(resnets|0)\.|cap_embedder\.)"),
        ("vae", r"^((first_stage_model|vae)\.)?decoder\.(conv_in|conv1|up|up_blocks|mid|middle)\b"),
        ("text_encoder", r"^(\w+\.)*(text_model\.encoder\.layers|resblocks|encoder\.block)\.0\."),
        ("text_encoder", r"^model\.layers\.0\.self_attn\."),
    )
)
_PARTS = re.compile(r"^(first_stage_model|vae|cond_stage_model|conditioner|text_encoders)\.", re.MULTILINE)
_EMBEDDINGS = ("emb_params", "clip_l", "clip_g", "t5xxl")


def family_of(sizes: Shapes, kind: str = "checkpoint") -> str:
    """The architecture that it is, or that it was made for; "" if it cannot be told."""
    if kind == "text_encoder":
        return _text_encoder(sizes)
    if kind == "embedding":
        if "clip_g" in sizes:
            return "SDXL"
        return WIDTHS.get((sizes.get("emb_params") or (0,))[-1], "")
    if by_encoders := family_by_encoders(sizes):
        return by_encoders
    if kind == "lora":
        return family_by_layers("\n".join(f"{name}{list(size)}" for name, size in sizes.items()).encode())
    names = "\n".join(sizes)
    found = next((family for family, pattern in _FAMILIES if pattern.search(names)), "")
    widths = [size[1] for name, size in sizes.items() if name.endswith("attn2.to_k.weight") and len(size) == 2]
    return found or (WIDTHS.get(max(widths), "") if widths else "")


def family_by_encoders(names: Iterable[str]) -> str:
    """Of a whole checkpoint in the original layout, by the text encoders that it has."""
    held = set(names)
    if "conditioner.embedders.1.model.ln_final.weight" in held:
        return "SDXL"
    if "conditioner.embedders.0.model.ln_final.weight" in held:
        return "SDXL refiner"
    if "cond_stage_model.model.ln_final.weight" in held:
        return "SD 2.x"
    return "SD 1.x" if any(name.startswith("cond_stage_model.transformer.") for name in held) else ""


_FAMILIES = tuple(
    (family, re.compile(pattern, re.MULTILINE))
    for family, pattern in (
        ("FLUX.2", r"double_stream_modulation_img\."),
        ("Chroma", r"distilled_guidance_layer\."),
        ("Hunyuan Video", r"double_blocks\.0\.img_attn_qkv"),
        ("FLUX.1", r"(double_blocks\.0\.img_attn|(^|\.)single_transformer_blocks\.0)\."),
        ("SD 3.x", r"(^|\.)joint_blocks\.0\."),
        ("Qwen-Image", r"(^|\.)transformer_blocks\.0\.img_mod\."),
        ("SD 3.x", r"(^|\.)transformer_blocks\.0\.attn\.add_k_proj\."),
        ("Stable Cascade", r"(^|\.)clip(_txt)?_mapper\."),
        ("Lumina 2", r"(^|\.)cap_embedder\."),
    )
)


def family_by_layers(names: bytes) -> str:
    """Of a LoRA, by how its layers are called: each name with its shape [rank, width] behind it somewhere; part of them
    is enough."""
    start = names.find(b"attn2")  # a regular expression alone would take longer than all the rest of the look
    if start >= 0 and (width := _CROSS_ATTENTION.search(names, start, start + ENDS)):
        return WIDTHS.get(int(width[1]), "")
    ends = names[:ENDS] + names[-ENDS:]  # they are sorted: the text encoders' come first
    if b"double_blocks" in ends or b"single_blocks" in ends or b"single_transformer_blocks" in ends:
        return "FLUX.1"
    return "SD 3.x" if b"joint_blocks" in ends or b"add_k_proj" in ends else ""


ENDS = 2048  # bytes
_CROSS_ATTENTION = re.compile(rb'attn2[_.]to_k[^\[\]"]*(?:down|lora_A)[^\[\]]*\[\s*\d+,\s*(\d{3,4})\s*\]')


def _text_encoder(sizes: Shapes) -> str:
    for ending, families in (
        ("token_embedding.weight", {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}),
        ("shared.weight", {4096: "T5-XXL", 2048: "T5-XL", 1024: "T5-Large", 768: "T5-Base"}),
    ):
        widths = [size[-1] for name, size in sizes.items() if name.endswith(ending) and size]
        if widths:
            return families.get(widths[0], "")
    return ""


# --- what a file says of itself --------------------------------------------------------------------------------------


def stated_family(metadata: Mapping[str, str]) -> str:
    """By what trainers write: kohya's base version, and Stability's "modelspec"."""
    base = metadata.get("ss_base_model_version", "").lower()
    spec = metadata.get("modelspec.architecture", "").lower()
    if not base and not spec:
        return "SD 2.x" if metadata.get("ss_v2") == "True" else ""
    for family, starts, parts in (
        ("SDXL refiner", (), ("xl-v1-refiner",)),
        ("SDXL", ("sdxl",), ("stable-diffusion-xl",)),
        ("SD 3.x", ("sd3",), ("stable-diffusion-3", "stable-diffusion-v3")),
        ("FLUX.1", ("flux",), ("flux",)),
        ("Lumina 2", ("lumina",), ("lumina",)),
        ("SD 2.x", ("sd_v2", "sd2"), ("stable-diffusion-v2",)),
        ("SD 1.x", ("sd_v1", "sd_1", "sd1"), ("stable-diffusion-v1",)),
    ):
        if (starts and base.startswith(starts)) or any(part in spec for part in parts):
            return family
    return ""


def stated_base(metadata: Mapping[str, str]) -> str:
    for key in ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"):
        if value := metadata.get(key, "").strip():
            return re.split(r"[/\\]", value)[-1][:120] if key == "ss_sd_model_name" else value[:120]
    return ""


def stated_resolution(metadata: Mapping[str, str]) -> str:
    value = metadata.get("modelspec.resolution") or metadata.get("ss_resolution") or ""
    sides = re.fullmatch(r"\D{0,3}(\d{2,5})\s*[x×,]\s*(\d{2,5})\D{0,3}", value.strip())
    return f"{sides[1]}x{sides[2]}" if sides else ""


def pictured(metadata: Mapping[str, str]) -> str:
    return "yes" if metadata.get("modelspec.thumbnail", "").startswith("data:image/") else ""


def _usual(family: str) -> str:
    """What a family predicts unless a file says otherwise; of SD 2.x there are both."""
    return "flow" if family in FLOWS else "epsilon" if family in ("SD 1.x", "SDXL", "SDXL refiner") else ""


def _most(header: Header) -> str:
    counted: Counter[str] = Counter()
    for info in header.tensors.values():
        counted[info.dtype] += info.end - info.start
    return counted.most_common(1)[0][0] if counted else ""


def dtype_in(header: bytes) -> str:
    """Of the first tensor that a piece of a header tells."""
    found = _DTYPE.search(header)
    dtype = found[1].decode("ascii") if found else ""
    return dtype if dtype in DTYPE_BITS else ""


_DTYPE = re.compile(rb'"dtype":\s*"([A-Z0-9_]+)"')


def pickled_names(data: bytes) -> dict[str, tuple[int, ...]]:
    """Names of tensors, as they stand in a pickle; nothing of it is run."""
    found: dict[str, tuple[int, ...]] = {}
    for mark in _TEXT.finditer(data):
        length = int.from_bytes(mark[1] or mark[2], "little")
        name = data[mark.end() : mark.end() + length]
        if _NAME.fullmatch(name):
            found[name.decode("ascii")] = ()
    return found


_TEXT = re.compile(rb"X(..\0\0)|\x8c(.)", re.DOTALL)  # a text and its length, in a pickle
_NAME = re.compile(rb"[A-Za-z_][\w.]{2,200}\.(?:weight|bias|alpha)")


def _of_folder(folder: Path) -> Facts:
    """Diffusers' layout: the id is made of the ids of its files."""
    parts = folders.files_of(folder)
    files = sorted(path for paths in parts.values() for path in paths)
    looked = {path: look(path) for path in files}
    lines = "\n".join(f"{path.relative_to(folder).as_posix()} {looked[path].content}" for path in files)
    unet = looked[parts["unet"][0]]
    family = unet.family
    stated = folders.config_of_part(folder, "scheduler").get("prediction_type")
    prediction = {"v_prediction": "v", "epsilon": "epsilon"}.get(stated, "") if isinstance(stated, str) else ""
    return Facts(
        content=hashlib.blake2b(lines.encode(), digest_size=10).hexdigest(),
        format="diffusers",
        family=family,
        dtype=unet.dtype,
        prediction=prediction or _usual(family),
        kind="checkpoint",
    )
