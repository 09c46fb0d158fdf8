"""Finds the family of a checkpoint, and reads its model."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from modules.families import ldm
from modules.families.family import UNTOLD, Family, Model, Report
from modules.families.formats import header_of
from modules.families.sd1 import SD1Family
from modules.families.sd2 import SD2Family
from modules.families.sdxl import RefinerFamily, SDXLFamily
from modules.families.unet_files import is_unet_only, other_kind
from modules.families.weights import BeyondHalf
from modules.library.header import Header, ModelFileError, printable
from modules.runtime.device import Part, Placement, name_of

log = logging.getLogger(__name__)

FAMILIES: tuple[Family, ...] = (SD1Family(), SD2Family(), SDXLFamily(), RefinerFamily())


@torch.inference_mode(False)  # a run may switch to another checkpoint; LoRAs are undone when it has ended
def read_model(
    path: Path,
    placement: Placement,
    config: Path | None = None,
    report: Report = UNTOLD,
    families: tuple[Family, ...] = FAMILIES,
    header: Header | None = None,
) -> Model:
    """The model of a checkpoint, whatever its family. `header`: of the file, where it is known. Raises ModelFileError
    with a sentence for people."""
    header = header or header_of(path)
    family = next((family for family in families if family.matches(header)), None)
    if family is None:
        raise ModelFileError(path, unknown(header, families))
    placement = suited(placement, family)
    for _ in PARTS:
        try:
            return family.load(path, header, config, placement, report)
        except BeyondHalf as error:
            part = part_of(error.name)
            if placement.widened(part) == placement:  # it did not come from that part
                raise
            placement = placement.widened(part)
            log.warning(
                "%s: %r holds values beyond the range of float16; its %s is loaded in %s",
                printable(path.name), error.name, PARTS[part], name_of(placement.dtype_of(part)),
            )  # fmt: skip
    return family.load(path, header, config, placement, report)


def unknown(header: Header, families: tuple[Family, ...]) -> str:
    """Why no family takes it."""
    known = ", ".join(family.name for family in families)
    if is_unet_only(header):
        return "this file has only a UNet, and no text encoder beside it"
    if other := other_kind(header):
        return f"a model of the family {other}, which is not supported; known are {known}"
    return f"not a checkpoint of a known family ({known}); is it a LoRA, a VAE or an embedding?"


PARTS: Mapping[Part, str] = {"unet": "UNet", "text": "text encoder", "vae": "VAE"}


def suited(placement: Placement, family: Family) -> Placement:
    """In bf16 what leaves fp16's range in this family, where the device multiplies bf16 as fast."""
    if placement.wide_dtype is torch.bfloat16:
        for part in family.wide:
            placement = placement.widened(part)
    return placement


def part_of(name: str) -> Part:
    """Which part of a model a tensor belongs to."""
    return "unet" if name.startswith(ldm.UNET) else "vae" if name.startswith(ldm.VAE) else "text"
