"""The networks of a prompt in whole runs: at the checkpoint, at its refiner, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.families.networks.embeddings import EmbeddingStore
from modules.generation.engine import generate
from modules.generation.plan import plan
from modules.generation.progress import Interrupted
from modules.generation.request import GenerationRequest, Refiner
from modules.generation.shelf import Loaded
from modules.library.header import ModelFileError
from modules.library.networks import NetworkLibrary
from modules.settings.schema import Settings
from tests.generation.test_families import Models, differ
from tests.tiny import save_tiny_of, tiny_parts

TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_of(folder / "sdxl.safetensors", "sdxl", tiny_parts("sdxl"))
    save_tiny_of(folder / "refiner.safetensors", "refiner", tiny_parts("refiner"))
    for name in ("VAE", "lora", "embedding"):
        (folder / name).mkdir()
    save_file({f"{TO_K}.diff": torch.randn(64, 64)}, folder / "lora" / "xl.safetensors")
    save_file({f"{TO_K}.diff": torch.randn(9, 9)}, folder / "lora" / "other.safetensors")
    save_file({"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 32)}, folder / "embedding" / "zz.safetensors")
    models = Models(folder)
    library = NetworkLibrary({"lora": [folder / "lora"], "embedding": [folder / "embedding"]}, folder / "networks.db")
    models.shelf = replace(models.shelf, networks=library, embeddings=EmbeddingStore(library))
    return models


def test_a_refiner_that_a_lora_does_not_fit_goes_without_it(models: Models):
    refiner = Refiner(checkpoint="refiner", switch_at=0.5)
    plain = models.run("sdxl", refiner=refiner)
    changed = models.run("sdxl", prompt="a cat <lora:xl:1>", refiner=refiner)
    assert differ(plain, changed)
    (warning,) = changed.warnings
    assert warning.startswith("xl.safetensors: ") and warning.endswith("it was left out")
    assert 'Lora hashes: "xl: ' in changed.infotext
    assert not differ(plain, models.run("sdxl", refiner=refiner))  # nothing stayed behind


def test_a_checkpoint_that_a_lora_does_not_fit_makes_no_picture(models: Models):
    with pytest.raises(ModelFileError, match=r"other.safetensors: .*\(9, 9\) does not fit one of \(64, 64\)"):
        models.run("sdxl", prompt="a cat <lora:other:1>")


def test_names_like_words_are_told_and_missing_ones_are(models: Models):
    made = models.run("sdxl", prompt="a zz cat <lora:gone:1>")
    assert any("there is no LoRA 'gone'" in warning for warning in made.warnings)
    assert any("'zz' is called as ordinary words are" in warning for warning in made.warnings)
    assert "Lora hashes" not in made.infotext and made.infotext.count("zz: ") == 2


def test_a_path_is_no_name(models: Models, tmp_path: Path):
    made = models.run("sdxl", prompt="a cat <lora:../../etc/passwd:1>")
    assert any("there is no LoRA '../../etc/passwd'" in warning for warning in made.warnings)


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_interrupt_while_the_refiner_loads_keeps_the_picture_if_it_can(models: Models, in_memory: bool):
    """What there is by then is decoded, if that needs no model to be read again."""

    def load(name: str) -> Loaded:
        if name == "refiner":
            raise Interrupted
        return models.shelf.load(name)

    shelf = replace(models.shelf, load=load, at_hand=lambda name: in_memory)
    refiner = Refiner(checkpoint="refiner", switch_at=0.5)
    wanted = GenerationRequest(
        prompt="a cat", width=64, height=64, steps=4, seed=7, checkpoint="sdxl", refiner=refiner, batch_count=2
    )
    settings = Settings().with_overrides({"randn_source": "CPU"})
    made = list(generate(plan(wanted), shelf, settings, lambda progress: None))
    assert [image.complete for image in made] == ([False] if in_memory else [])


def test_a_run_that_cannot_be_compiled_says_so(models: Models):
    plain, asked = models.run("sdxl"), models.run("sdxl", settings={"torch_compile": "cudagraphs"})
    assert not differ(plain, asked)
    said = "The UNet is not compiled (cudagraphs): that is for NVIDIA cards, and the device is cpu"
    assert said in asked.warnings and said not in plain.warnings
