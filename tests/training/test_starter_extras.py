"""What is made beside the starter: the product takes it, and computes with it what it was trained as."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from modules.families.family import Model, TextOptions
from modules.families.networks.applied import applied
from modules.families.networks.embeddings import load_embedding
from modules.library.network_tags import Network
from modules.library.networks import Kind, NetworkFile
from modules.training.inversion import NewWord, embedding_file
from modules.training.lora import adapted, kohya_metadata, kohya_weights, make_adapter
from tools.starter.drawing import load
from tools.starter.extras import LORA_LIMIT, RANK, VECTORS

STARTER = Path(__file__).parents[2] / "models" / "Stable-diffusion" / "starter.safetensors"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(STARTER)


def network_file(kind: Kind, path: Path) -> NetworkFile:
    return NetworkFile(kind, str(path), path.stem, path.stem, "SD1", path.stat().st_size, 0)


@torch.no_grad()
def test_a_lora_file_does_in_the_product_what_it_was_trained_as(model: Model, tmp_path: Path) -> None:
    unet = model.components["unet"]
    adapter = make_adapter(unet, RANK, alpha=RANK)
    for number, (_, part) in enumerate(adapter.items()):
        torch.nn.init.normal_(part.up.weight, std=0.3, generator=torch.Generator().manual_seed(number))
    file = tmp_path / "style.safetensors"
    save_file(kohya_weights(adapter), file, metadata=kohya_metadata(adapter, {"ss_output_name": "style"}))
    assert file.stat().st_size <= LORA_LIMIT

    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    conditioning = model.encode(["red apple"], TextOptions())

    def predicted() -> torch.Tensor:
        return model.predict_eps(x, torch.tensor([600]), conditioning)

    plain = predicted()
    with adapted(unet, adapter):
        trained = predicted()
    with applied(model, [Network(network_file("lora", file), "style")]) as report:
        found = predicted()
    assert report.warnings == []
    assert (trained - plain).abs().mean() > 0.03
    assert_close(found, trained, atol=5e-3, rtol=5e-3)  # the file is fp16
    assert_close(dict(unet.state_dict()), before, atol=0, rtol=0)


def test_an_embedding_file_is_read_with_all_its_vectors(model: Model, tmp_path: Path) -> None:
    width = model.encode([""], TextOptions()).cross.shape[-1]
    word = NewWord(torch.randn(VECTORS, width), first=49408)
    file = tmp_path / "thing.safetensors"
    save_file(embedding_file(word), file)
    embedding = load_embedding(network_file("embedding", file))
    assert (embedding.vectors, embedding.width) == (VECTORS, width)
    assert_close(embedding.parts[""], word.vectors.detach())
