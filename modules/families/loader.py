"""Finds the family of a checkpoint, and reads its model."""

from pathlib import Path

from modules.families.family import UNTOLD, Family, Model, Report
from modules.families.formats import header_of
from modules.families.sd1 import SD1Family
from modules.families.sd2 import SD2Family
from modules.families.sdxl import RefinerFamily, SDXLFamily
from modules.library.header import Header, ModelFileError
from modules.runtime.device import Placement

FAMILIES: tuple[Family, ...] = (SD1Family(), SD2Family(), SDXLFamily(), RefinerFamily())


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
        known = ", ".join(family.name for family in families)
        raise ModelFileError(
            path, f"not a checkpoint of a known family ({known}); is it a LoRA, a VAE or an embedding?"
        )
    return family.load(path, header, config, placement, report)
