import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import Tensor

from modules.families.family import Model, TextOptions
from modules.families.networks.embeddings import EmbeddingStore, embedding_from, load_embedding, warning_of
from modules.library.header import ModelFileError
from modules.library.networks import NetworkFile, NetworkLibrary
from tests.tiny import tiny_folder as tiny_folder
from tests.tiny import tiny_model as tiny_model

VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def shelf(folder: Path) -> NetworkLibrary:
    return NetworkLibrary({"embedding": [folder]}, folder.parent / "networks.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "embeddings").mkdir()
    return tmp_path / "embeddings"


def lists(vectors: Tensor) -> dict[str, Any]:
    return {"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": "inner name", "step": 7}


def in_text(path: Path, data: dict[str, Any]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(data).encode()).decode())
    Image.new("RGB", (32, 32), (200, 100, 50)).save(path, pnginfo=info)


def in_pixels(path: Path, data: dict[str, Any], height: int = 64) -> None:
    """As A1111 writes it: halves of zlib's bytes in the low bits, masked, left and right of the picture."""
    raw = np.frombuffer(zlib.compress(json.dumps(data).encode(), 9), np.uint8)
    raw = np.concatenate([raw, np.zeros(-len(raw) % (height * 3), np.uint8)])
    state, mask = 0, []
    for _ in range(len(raw)):
        state = (1664525 * state + 1013904223) % 2**32
        mask.append(state % 255 & 0x0F)
    noise = np.random.default_rng(0).integers(1, 15, len(raw)).astype(np.uint8) << 4  # the pattern that people see
    halves = [((half ^ np.array(mask, np.uint8)) | noise).reshape(height, -1, 3) for half in (raw & 15, raw >> 4)]
    gap, picture = np.zeros((height, 1, 3), np.uint8), np.full((height, 50, 3), 77, np.uint8)
    Image.fromarray(np.concatenate([halves[0], gap, picture, gap, halves[1]], axis=1)).save(path)


FORMATS = {
    "a1111.pt": lambda path: torch.save({"string_to_param": {"*": VECTORS}, "name": "x", "step": 7}, path),
    "original.pt": lambda path: torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})},
        path,
    ),
    "diffusers.bin": lambda path: torch.save({"<concept>": VECTORS}, path),
    "diffusers.safetensors": lambda path: save_file({"<concept>": VECTORS}, path),
    "kohya.safetensors": lambda path: save_file({"emb_params": VECTORS.half()}, path),
    "text.png": lambda path: in_text(path, lists(VECTORS)),
    "pixels.png": lambda path: in_pixels(path, lists(VECTORS)),
    "pixels.webp": lambda path: _lossless(path),
}


def _lossless(path: Path) -> None:
    in_pixels(path.with_suffix(".tmp.png"), lists(VECTORS))
    with Image.open(path.with_suffix(".tmp.png")) as image:
        image.save(path, lossless=True, exact=True)
    path.with_suffix(".tmp.png").unlink()


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_hold_the_same(folder: Path, name: str, tiny_model: Model):
    FORMATS[name](folder / name)
    (file,) = shelf(folder).list("embedding")
    assert file.name == ("inner name" if name.startswith(("text", "pixels")) else name.split(".")[0])
    embedding = load_embedding(file)
    assert (embedding.vectors, embedding.width) == (3, 32)
    torch.testing.assert_close(embedding.parts[""], VECTORS, rtol=0, atol=2e-3 if name.startswith("kohya") else 0)
    fitted = EmbeddingStore(shelf(folder)).fitted(tiny_model)
    with torch.inference_mode():
        ours = tiny_model.encode([f"a {file.name.upper()} b"], TextOptions(embeddings=fitted)).cross
        plain = tiny_model.encode([f"a {file.name.upper()} b"], TextOptions()).cross
    assert fitted.skipped == {} and not torch.equal(ours, plain)


def test_vectors_stand_where_their_name_stands(folder: Path, tiny_model: Model):
    """An embedding of the vocabulary's own vectors is the words themselves."""
    network: Any = tiny_model.components["text_encoder"]
    words = network.get_input_embeddings().weight[[2368, 7770]].detach()  # two tokens
    tokenizer = tiny_model.encoder.tokenizer  # type: ignore[attr-defined]
    text = "".join(tokenizer.decode(token).replace("</w>", " ") for token in (2368, 7770)).strip()
    assert tokenizer.encode(text) == [2368, 7770]
    torch.save({"x": words}, folder / "zzqx.pt")
    fitted = EmbeddingStore(shelf(folder)).fitted(tiny_model)
    for prompt in ("a {} b", "{}, (({}:1.3))", "w " * 74 + "{}"):
        options = TextOptions(embeddings=fitted)
        with torch.inference_mode():
            ours = tiny_model.encode([prompt.replace("{}", "zzqx")], options).cross
            theirs = tiny_model.encode([prompt.replace("{}", text)], options).cross
        if prompt.startswith("w"):  # two vectors do not fit the one place that is left: they go on together
            theirs = theirs[:, 77:]
            ours = ours[:, 77:]
            assert ours.shape == theirs.shape
        else:
            torch.testing.assert_close(ours, theirs)


def test_one_with_more_vectors_than_a_chunk_goes_on_in_the_next(folder: Path, tiny_model: Model):
    torch.save({"x": torch.randn(160, 32)}, folder / "longer.pt")
    fitted = EmbeddingStore(shelf(folder)).fitted(tiny_model)
    with torch.inference_mode():
        assert tiny_model.encode(["a longer b"], TextOptions(embeddings=fitted)).cross.shape == (1, 4 * 77, 32)


def test_both_of_sdxls_encoders(folder: Path, tiny_model: Model):
    save_file({"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 40)}, folder / "both.safetensors")
    store = EmbeddingStore(shelf(folder))
    usable, _ = store.listed()
    assert (usable["both"].vectors, usable["both"].width) == (2, 72)

    class Encoder:
        def __init__(self, width: int):
            self.weight = torch.zeros(10, width)

        def get_input_embeddings(self) -> "Encoder":
            return self

    class TwoEncoders:
        family = "SDXL"
        components: Any = {"text_encoder": Encoder(32), "text_encoder_2": Encoder(40)}

    model: Any = TwoEncoders()
    fitted = store.fitted(model)
    tokenizer = tiny_model.encoder.tokenizer  # type: ignore[attr-defined]
    assert fitted.spellings("a both", tokenizer) is not None
    first, second = model.components.values()
    assert [tuple(fitted.vectors("both", encoder).shape) for encoder in (first, second)] == [(2, 32), (2, 40)]
    fitted.note("a both", ["both"])
    (told,) = set(str(fitted.hashes([["a both"]])).split(", "))  # twice, once for each encoder
    assert told.startswith("both: ")
    assert "both" in store.fitted(tiny_model).skipped or store.listed(tiny_model)[1]["both"].endswith("needs 32")


def test_hashes_are_written_as_a1111_orders_them(folder: Path, tiny_model: Model):
    for name in ("one", "two"):
        torch.save({"x": torch.full((1, 32), len(name) / 9 + (name == "two"))}, folder / f"{name}.pt")
    library = shelf(folder)
    store = EmbeddingStore(library)
    bundled = {
        "inside": embedding_from(
            {"string_to_param.*": VECTORS},
            "inside",
            NetworkFile("lora", "/l.safetensors", "my lora", "a", "SD1", 1, 1),
            True,
        )
    }
    fitted = store.fitted(tiny_model, bundled)
    options = TextOptions(embeddings=fitted)
    with torch.inference_mode():
        for text in ("two", "one two one", "inside", "nothing"):
            tiny_model.encode([text], options)
    one, two = (library.shorthash(file) for file in library.list("embedding"))
    prompts = [["two"], ["one two one", "inside"], ["nothing"]]
    assert fitted.hashes(prompts) == f"one: {one}, two: {two}, inside: my lora, two: {two}"
    assert fitted.hashes(prompts, bundled=False) == f"one: {one}, two: {two}, two: {two}"
    assert fitted.hashes([["nothing"]]) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"x": torch.ones(2, 1024)}, "'bad' is 1024 numbers wide; this checkpoint .SD 1.x. needs 32"),
        ({"x": torch.ones(0, 32)}, "vectors of one width were expected, it has the shape .0, 32."),
        ({"x": torch.ones(2, 2, 32)}, r"it has the shape .2, 2, 32."),
        ({"x": torch.ones(10_000, 32)}, "it has 10000 vectors; at most 750 are taken"),
        ({"x": torch.full((1, 32), torch.nan)}, "NaN or infinite"),
        ({"x": torch.ones(1, 32), "y": torch.ones(1, 32)}, "one embedding was expected in it, there are 2"),
        ({"step": 1}, "there are 0"),
        ([1, 2], "it holds no embedding"),
    ],
)
def test_what_does_not_fit_is_skipped_with_a_sentence(folder: Path, tiny_model: Model, content: Any, reason: str):
    torch.save(content, folder / "bad.pt")
    store = EmbeddingStore(shelf(folder))
    fitted = store.fitted(tiny_model)
    with torch.inference_mode():
        ours = tiny_model.encode(["a bad day"], TextOptions(embeddings=fitted)).cross
        assert torch.equal(ours, tiny_model.encode(["a bad day"], TextOptions()).cross)
    for skipped in (fitted.skipped, store.listed(tiny_model)[1]):
        assert list(skipped) == ["bad"]
        with pytest.raises(ModelFileError, match=f"bad.pt: .*{reason}"):
            raise ModelFileError(Path("bad.pt"), skipped["bad"].removeprefix("bad.pt: "))


def test_only_those_that_a_text_may_name_are_read(folder: Path, tiny_model: Model):
    torch.save({"x": VECTORS}, folder / "bad-hands-5.pt")
    (folder / "broken.pt").write_bytes(b"x")
    store = EmbeddingStore(shelf(folder))
    fitted = store.fitted(tiny_model)
    with torch.inference_mode():
        tiny_model.encode(["photo, BAD - hands-5"], TextOptions(embeddings=fitted))
    assert fitted.hashes([["photo, BAD - hands-5"]]) is not None and fitted.skipped == {}


def test_a_changed_file_is_read_again(folder: Path):
    torch.save({"x": VECTORS}, folder / "x.pt")
    library = shelf(folder)
    store = EmbeddingStore(library)
    assert store.load(library.list("embedding")[0]).vectors == 3
    torch.save({"x": torch.ones(200, 32)}, folder / "x.pt")
    library.refresh()
    assert store.load(library.list("embedding")[0]).vectors == 200


@pytest.mark.parametrize("name", ["a", "AND", ":)", "the"])
def test_names_that_are_common_words_warn(name: str):
    assert "is called as ordinary words are" in str(warning_of(name))
    assert warning_of("easynegative") is None


def test_a_damaged_picture_is_no_embedding(folder: Path):
    in_pixels(folder / "x.png", lists(VECTORS))
    with Image.open(folder / "x.png") as image:
        array = np.asarray(image).copy()
    array[:, :3] ^= 5
    Image.fromarray(array).save(folder / "x.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / "photo.png")
    assert shelf(folder).list("embedding") == ()
