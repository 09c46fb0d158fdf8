"""Textual inversions: read from any of their formats, and offered to the text encoders of a model by the names that a
prompt uses. Those that do not fit the model are skipped, with a sentence why."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families.family import Model
from modules.families.networks.pickles import load_pickle
from modules.families.networks.tensors import opened
from modules.library.embedding_images import TENSOR, NoEmbedding, read_embedding
from modules.library.header import ModelFileError, printable
from modules.library.network_tags import plain
from modules.library.networks import IMAGES, NetworkFile, NetworkLibrary
from modules.prompt.tokens import Embeddings as Spellings
from modules.prompt.tokens import Tokenizer, clean

MAX_VECTORS = 750  # ten chunks
PARTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of an embedding for both of SDXL's encoders
WHOLE = ""  # the part of an embedding for one encoder
_RISKY = frozenset({"and", "break", "the", "of", "in", "on", "with"})


@dataclass(frozen=True)
class Embedding:
    name: str
    parts: Mapping[str, Tensor]  # {WHOLE: (V, D)}, or {"clip_l": (V, D), "clip_g": (V, D')}; float32
    file: NetworkFile
    step: int | None = None
    checkpoint: str | None = None  # what it was trained with: hash and name
    checkpoint_name: str | None = None
    bundled: bool = False  # inside of a LoRA

    @property
    def vectors(self) -> int:
        return int(next(iter(self.parts.values())).shape[0])

    @property
    def width(self) -> int:
        """What A1111 calls its shape: of both encoders together."""
        return sum(int(part.shape[1]) for part in self.parts.values())


def load_embedding(file: NetworkFile) -> Embedding:
    """Raises ModelFileError."""
    if file.file.lower().endswith(".safetensors"):
        with opened(file.path) as tensors:
            content: Any = {name: tensors.read(name) for name in tensors.shapes}
    elif file.file.lower().endswith(IMAGES):
        try:
            content = _with_tensors(read_embedding(file.file), file.path)
        except (NoEmbedding, OSError) as error:
            raise ModelFileError(file.path, f"no embedding is hidden in it ({error})") from None
    else:
        content = load_pickle(file.path)
    return embedding_from(content, file.name, file)


def embedding_from(content: Any, name: str, file: NetworkFile, bundled: bool = False) -> Embedding:
    """`content`: as A1111, the original textual inversion, or diffusers saved it. Raises ModelFileError."""
    if not isinstance(content, Mapping):
        raise ModelFileError(file.path, "it holds no embedding")
    flat = {str(key).removeprefix("string_to_param."): value for key, value in content.items()} if bundled else content
    inner = flat.get("string_to_param", flat)
    tensors = {str(key): value for key, value in dict(inner).items() if isinstance(value, Tensor)}
    if set(tensors) >= {"clip_l", "clip_g"}:
        parts = {key: _vectors(tensors[key], file.path) for key in ("clip_l", "clip_g")}
        if len({part.shape[0] for part in parts.values()}) > 1:
            raise ModelFileError(file.path, "its two encoders have different numbers of vectors")
    elif len(tensors) == 1:
        parts = {WHOLE: _vectors(next(iter(tensors.values())), file.path)}
    else:
        raise ModelFileError(file.path, f"one embedding was expected in it, there are {len(tensors)}")
    step, hashed, trained_with = (flat.get(key) for key in ("step", "sd_checkpoint", "sd_checkpoint_name"))
    return Embedding(
        name,
        parts,
        file,
        int(step) if isinstance(step, int) else None,
        str(hashed) if hashed else None,
        str(trained_with) if trained_with else None,
        bundled,
    )


def _vectors(tensor: Tensor, path: Path) -> Tensor:
    vectors = tensor.detach().float()
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or vectors.numel() == 0:
        raise ModelFileError(path, f"vectors of one width were expected, it has the shape {tuple(tensor.shape)}")
    if vectors.shape[0] > MAX_VECTORS:
        raise ModelFileError(path, f"it has {vectors.shape[0]} vectors; at most {MAX_VECTORS} are taken")
    if not vectors.isfinite().all():
        raise ModelFileError(path, "it holds NaN or infinite numbers; the file is damaged")
    return vectors


def _with_tensors(value: Any, path: Path) -> Any:
    """The JSON of a picture, with tensors in the places of their nested lists."""
    if isinstance(value, Mapping):
        if set(value) == {TENSOR}:
            try:
                return torch.tensor(value[TENSOR], dtype=torch.float32)
            except (ValueError, TypeError) as error:
                raise ModelFileError(path, f"the embedding hidden in it is damaged ({error})") from None
        return {key: _with_tensors(item, path) for key, item in value.items()}
    return value


class EmbeddingStore:
    """The embeddings of a library, each read when first needed. Not for several threads at once."""

    def __init__(self, library: NetworkLibrary):
        self._library = library
        self._read: dict[NetworkFile, Embedding | ModelFileError] = {}
        self._listed: tuple[NetworkFile, ...] = ()
        self._squeezed: list[tuple[str, NetworkFile]] = []

    def load(self, file: NetworkFile) -> Embedding:
        """Raises ModelFileError."""
        if file not in self._read:
            try:
                self._read[file] = load_embedding(file)
            except ModelFileError as error:
                self._read[file] = error
        found = self._read[file]
        if isinstance(found, ModelFileError):
            raise found
        return found

    def shorthash(self, file: NetworkFile) -> str:
        return self._library.shorthash(file)

    def candidates(self, text: str) -> list[NetworkFile]:
        """The files whose names may occur in the text."""
        listed = self._library.list("embedding")
        if listed is not self._listed:
            self._listed, self._squeezed = listed, [(_squeezed(file.name), file) for file in listed]
        within = _squeezed(text)
        return [file for name, file in self._squeezed if name and name in within]

    def fitted(self, model: Model, bundled: Mapping[str, Embedding] | None = None) -> "FittedEmbeddings":
        """For TextOptions.embeddings. `bundled`: those of the LoRAs that are applied (Report.embeddings)."""
        return FittedEmbeddings(self, model, bundled or {})

    def listed(self, model: Model | None = None) -> tuple[dict[str, Embedding], dict[str, str]]:
        """(those that can be used, with the model if one is given; why the others cannot), both by name. Reads all."""
        usable: dict[str, Embedding] = {}
        skipped: dict[str, str] = {}
        for file in sorted(self._library.list("embedding"), key=lambda file: file.name.lower()):
            try:
                embedding = self.load(file)
                reason = misfit(embedding, model) if model is not None else None
            except ModelFileError as error:
                reason = str(error)
            if reason is None:
                usable[file.name] = embedding
            else:
                skipped[file.name] = reason
        return usable, skipped


def misfit(embedding: Embedding, model: Model) -> str | None:
    """Why this embedding cannot be used with this model; None if it can."""
    widths = [encoder_width(network) for name, network in model.components.items() if name in PARTS]
    if len(embedding.parts) == len(widths) and embedding.width == sum(widths):
        return None
    ours, theirs = " + ".join(map(str, widths)), " + ".join(str(p.shape[1]) for p in embedding.parts.values())
    return (
        f"{embedding.file.path.name}: the embedding {embedding.name!r} is {theirs} numbers wide; "
        f"this checkpoint ({model.family}) needs {ours}"
    )


def encoder_width(network: Any) -> int:
    return int(network.get_input_embeddings().weight.shape[1])


def warning_of(name: str) -> str | None:
    """Whether an embedding's name will be met where nobody meant it."""
    if len(name) < 3 or name.casefold() in _RISKY or not any(c.isalnum() for c in name):
        return f"the embedding {printable(name)!r} is called as ordinary words are; every prompt with it uses it"
    return None


class FittedEmbeddings:
    """The embeddings that one model can use, for as long as it is loaded as it is."""

    def __init__(self, store: EmbeddingStore, model: Model, bundled: Mapping[str, Embedding]):
        self._store, self._model, self._bundled = store, model, bundled
        self._encoders = {id(network): name for name, network in model.components.items() if name in PARTS}
        self._found: dict[str, Embedding] = {}
        self._used: dict[str, tuple[str, ...]] = {}  # by text, in order
        self.skipped: dict[str, str] = {}  # name -> why; those that a text named
        self.warnings: dict[str, str] = {}  # name -> a sentence; those that were used, perhaps unmeant

    def spellings(self, text: str, tokenizer: Tokenizer) -> Spellings | None:
        """What the text may name, for cutting it into chunks."""
        vectors: dict[str, int] = {}
        for file in self._store.candidates(text):
            try:
                self._offer(self._store.load(file), vectors)
            except ModelFileError as error:
                self.skipped[file.name] = str(error)
        within = _squeezed(text) if self._bundled else ""
        for name, embedding in self._bundled.items():
            if name not in vectors and _squeezed(name) in within:  # a file of that name goes first, as in A1111
                self._offer(embedding, vectors)
        return Spellings(vectors, tokenizer) if vectors else None

    def _offer(self, embedding: Embedding, vectors: dict[str, int]) -> None:
        reason = misfit(embedding, self._model)
        if reason is None:
            self._found[embedding.name] = embedding
            vectors[embedding.name] = embedding.vectors
        else:
            self.skipped[embedding.name] = reason

    def vectors(self, name: str, network: Any) -> Tensor:
        """(V, D) of one that `spellings` found, for one of the model's text encoders."""
        parts = self._found[name].parts
        return parts[WHOLE] if WHOLE in parts else parts[PARTS[self._encoders[id(network)]]]

    def identity(self, name: str) -> Hashable:
        """Of one that `spellings` found: another one as soon as its file is."""
        found = self._found[name]
        return found.file, found.name, found.bundled

    def note(self, text: str, names: Iterable[str]) -> None:
        """The encoder tells what a text used, in order."""
        self._used[text] = tuple(dict.fromkeys(names))
        self.warnings |= {name: warning for name in self._used[text] if (warning := warning_of(name))}

    def hashes(self, prompts: Sequence[Sequence[str]], bundled: bool = True) -> str | None:
        """The infotext's "TI hashes". `prompts`: what was encoded, negative prompts first; of each all texts that its
        schedule has. A1111 writes later ones before earlier ones, and for SDXL each twice, once for an encoder.
        `bundled`: the setting lora_bundled_ti_to_infotext: those inside of LoRAs, by the LoRA's name."""
        entries: list[str] = []
        for texts in prompts:
            names = dict.fromkeys(name for text in texts for name in self._used.get(text, ()))
            used = [self._found[name] for name in names]
            told = [f"{plain(e.name)}: {self._shorthash(e)}" for e in used if bundled or not e.bundled]
            entries = told * len(self._encoders) + entries
        return ", ".join(entries) or None

    def _shorthash(self, embedding: Embedding) -> str:
        return embedding.file.name if embedding.bundled else self._store.shorthash(embedding.file)


def _squeezed(text: str) -> str:
    """As the tokenizer reads it, without spaces: a name's tokens stand in a text's only if this stands in that."""
    return "".join(clean(text).split())
