"""What a run may take from: checkpoints and networks by name, pictures by id, upscalers by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modules.families.family import Model
from modules.families.networks.embeddings import EmbeddingStore
from modules.families.networks.tensors import NetworkFiles
from modules.families.residence import Residence
from modules.families.vae_choice import VaeShelf
from modules.generation.prompts import Conditionings
from modules.imaging.resize import Upscale
from modules.library.checkpoints import Checkpoint
from modules.library.networks import NetworkLibrary
from modules.library.vaes import VaeFile
from modules.settings.schema import Settings


@dataclass(frozen=True)
class Loaded:
    model: Model
    checkpoint: Checkpoint


def no_picture(id: str) -> Image.Image:
    raise ValueError(f"there is no input picture {id[:12]!r}")


def no_upscaler(name: str, settings: Settings) -> Any:
    raise ValueError(f"there is no upscaler {name[:80]!r}")


Enlarge = Callable[[Image.Image, float], Image.Image]  # picture, scale -> picture so many times as large


@dataclass(frozen=True)
class Shelf:
    load: Callable[[str], Loaded]  # a checkpoint by its name, hashed; what was loaded before may be gone then
    identity: Callable[[str], Checkpoint]  # the same without loading it
    at_hand: Callable[[str], bool] = lambda name: True  # whether `load` has no file to read
    picture: Callable[[str], Image.Image] = no_picture  # an input picture by its id
    upscaler: Callable[[str, Settings], Upscale] = no_upscaler  # by name; raises ValueError with a sentence
    enlarger: Callable[[str, Settings], Enlarge] = no_upscaler  # the same by a scale instead of a size
    networks: NetworkLibrary | None = None  # LoRAs and hypernetworks
    embeddings: EmbeddingStore | None = None
    vae_for: Callable[[Checkpoint, Settings], VaeFile | None] = lambda checkpoint, settings: None  # None: its own
    vaes: VaeShelf = field(default_factory=VaeShelf)
    network_files: NetworkFiles = field(default_factory=NetworkFiles)  # LoRAs that stay in memory
    conditionings: Conditionings = field(default_factory=Conditionings)  # of earlier runs
    residence: Residence = field(default_factory=Residence)  # where on the device a model's parts are

    @classmethod
    def of(cls, model: Model, checkpoint: Checkpoint) -> "Shelf":
        """With this one model only."""
        return cls(lambda name: Loaded(model, checkpoint), lambda name: checkpoint)
