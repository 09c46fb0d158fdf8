"""Another VAE in the place of a checkpoint's own, for one run."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from modules.families import ldm
from modules.families.family import Model
from modules.families.formats import opened, vae_header
from modules.families.hints import LayoutError
from modules.families.latent import LatentModel
from modules.families.vae import Vae, load_vae
from modules.families.weights import BeyondHalf
from modules.library.header import ModelFileError
from modules.library.vaes import VaeFile


class VaeShelf:
    """Keeps the VAEs that were used last. For the worker's thread only."""

    def __init__(self, room: int = 1):
        self.room = room  # how many stay loaded
        self._kept: OrderedDict[object, Vae] = OrderedDict()

    @contextmanager
    def using(self, model: Model, file: VaeFile | None) -> Iterator[None]:
        """Within, the model has the VAE of this file, and afterwards its own again; None: its own all the time.

        Raises ModelFileError for a file that is no VAE, or not one for this model; the model is as before then.
        """
        if file is None:
            yield
            return
        if not isinstance(model, LatentModel):
            raise ModelFileError(file.path, f"models of the family {model.family} take no other VAE")
        own, model.vae = model.vae, self._get(model, file)
        try:
            yield
        finally:
            model.vae = own

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()

    def _get(self, model: LatentModel, file: VaeFile) -> Vae:
        key = (file.path, file.fingerprint, model.latent, model.placement)
        vae = self._kept.pop(key, None) or read_vae(file.path, model)
        self._kept[key] = vae
        while len(self._kept) > self.room:
            self._kept.popitem(last=False)
        return vae


def read_vae(path: Path, model: LatentModel) -> Vae:
    """Raises ModelFileError."""
    header = vae_header(path)
    prefix = ldm.VAE if any(name.startswith(ldm.VAE) for name in header.tensors) else ""
    if f"{prefix}decoder.conv_in.weight" not in header.tensors:
        found = next(iter(header.tensors))
        raise ModelFileError(path, f"this is no VAE: it has no decoder, but tensors such as {found[:80]!r}")
    try:
        with opened(path, header) as file:
            load = partial(load_vae, file, dict(model.vae.network.config), model.latent, prefix=prefix)
            try:
                return load(placement=model.placement)
            except BeyondHalf:
                return load(placement=model.placement.widened("vae"))
    except LayoutError as error:
        raise ModelFileError(path, f"no VAE for this {model.family} model: {error}") from error
