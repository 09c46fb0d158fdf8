"""Finds the family of a checkpoint and keeps the one that is loaded."""

import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from modules.families.family import Family, Model
from modules.families.formats import header_of
from modules.families.sd1 import SD1Family
from modules.families.sd2 import SD2Family
from modules.families.sdxl import RefinerFamily, SDXLFamily
from modules.library.checkpoints import Checkpoint
from modules.library.header import ModelFileError
from modules.runtime.device import Placement

log = logging.getLogger(__name__)

FAMILIES: tuple[Family, ...] = (SD1Family(), SD2Family(), SDXLFamily(), RefinerFamily())


class ModelHolder:
    """Holds one loaded model; used by the worker thread only."""

    def __init__(self, placement: Placement, report: Callable[[str], None], families: tuple[Family, ...] = FAMILIES):
        self.placement = placement
        self._report, self._families = report, families
        self._model: Model | None = None
        self._loaded: tuple[Path, int, int] | None = None

    def get(self, checkpoint: Checkpoint) -> Model:
        """The checkpoint's model, loaded now if another one was. Raises ModelFileError with a sentence for people."""
        wanted = (checkpoint.path, checkpoint.size, checkpoint.mtime_ns)
        if self._model is None or self._loaded != wanted:
            self.unload()
            self._model = self._load(checkpoint)
            self._loaded = wanted
        return self._model

    def unload(self) -> None:
        """Give the memory back; the next `get` loads again."""
        self._model = self._loaded = None
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, checkpoint: Checkpoint) -> Model:
        started = time.monotonic()
        megabytes = checkpoint.size / 1e6

        def report(part: str) -> None:
            self._report(f"loading {checkpoint.model_name}, {megabytes:.0f} MB: {part}")

        model = read_model(checkpoint.path, self.placement, checkpoint.config, report, self._families)
        took = time.monotonic() - started
        log.info("loaded %s (%s) on %s in %.2f s", checkpoint.model_name, model.family, self.placement, took)
        return model


def read_model(
    path: Path,
    placement: Placement,
    config: Path | None = None,
    report: Callable[[str], None] = lambda part: None,
    families: tuple[Family, ...] = FAMILIES,
) -> Model:
    """The model of a checkpoint, whatever its family. Raises ModelFileError with a sentence for people."""
    header = header_of(path)
    family = next((family for family in families if family.matches(header)), None)
    if family is None:
        known = ", ".join(family.name for family in families)
        raise ModelFileError(
            path, f"not a checkpoint of a known family ({known}); is it a LoRA, a VAE or an embedding?"
        )
    return family.load(path, header, config, placement, report)
