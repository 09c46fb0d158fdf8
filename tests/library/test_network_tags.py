from pathlib import Path

import pytest

from modules.library.network_tags import Network, hashes_of, networks_from, with_default_networks
from modules.library.networks import NetworkLibrary
from modules.prompt.networks import extract_networks
from tests.library.test_networks import save


@pytest.fixture
def shelf(tmp_path: Path) -> NetworkLibrary:
    for name in ("one", "two"):
        save(tmp_path / "loras" / f"{name}.safetensors", {"ss_output_name": f"alias {name}"})
    (tmp_path / "hypernetworks").mkdir()
    (tmp_path / "hypernetworks" / "hyper.pt").write_bytes(b"PK\3\4")
    folders = {"lora": [tmp_path / "loras"], "hypernetwork": [tmp_path / "hypernetworks"]}
    return NetworkLibrary(folders, tmp_path / "networks.db")  # type: ignore[arg-type]


def networks(prompt: str, shelf: NetworkLibrary) -> tuple[list[Network], list[str]]:
    return networks_from(extract_networks(prompt)[1], shelf)


@pytest.mark.parametrize(
    ("tag", "text", "unet", "dim"),
    [
        ("<lora:one>", 1, 1, None),
        ("<lora:one:0.5>", 0.5, 0.5, None),
        ("<lora:one:0.5:0.8>", 0.5, 0.8, None),
        ("<lora:one:0.5:0.8:4>", 0.5, 0.8, 4),
        ("<lora:one:te=0.2>", 0.2, 0.2, None),
        ("<lora:one:unet=0.2>", 1, 0.2, None),
        ("<lora:one:0.5:unet=-0.2:dyn=8>", 0.5, -0.2, 8),
        ("<lora:one:dyn=8:0.7>", 0.7, 0.7, 8),
        ("<lyco:one:0.7>", 0.7, 0.7, None),
        ("<lora:alias two:0.7>", 0.7, 0.7, None),
        ("<hypernet:hyper:0.3>", 0.3, 0.3, None),
        ("<hypernet:hyper>", 1, 1, None),
    ],
)
def test_weights(shelf: NetworkLibrary, tag: str, text: float, unet: float, dim: int | None):
    (network,), warnings = networks(tag, shelf)
    assert (network.text, network.unet, network.dim, warnings) == (text, unet, dim, [])


def test_of_one_named_twice_the_last_weights_count_twice(shelf: NetworkLibrary):
    found, _ = networks("<lora:one:0.5><lora:two:0.1><lora:one:0.3><lora:alias one:0.7>", shelf)
    assert [(n.file.name, n.unet) for n in found] == [("one", 0.3), ("two", 0.1), ("one", 0.3), ("one", 0.7)]


@pytest.mark.parametrize(
    ("tag", "warning"),
    [
        ("<lora:onne:1>", "there is no LoRA 'onne', it was left out; nearest: one"),
        ("<hypernet:x:1>", "there is no hypernetwork 'x'"),
        ("<foo:x:1>", "there is no kind of network called 'foo'"),
        ("<lora:one:abc>", "LoRA one: its weight 'abc' is not a number"),
        ("<lora:one:nan>", "is not between -1000 and 1000"),
        ("<lora:one:1e6>", "its weight 1e6 is not between -1000 and 1000"),
        ("<lora:one:1:1:0>", "dyn=0 leaves none of its ranks"),
        ("<lora:one:dyn=x>", "dyn='x' is not a whole number"),
        ("<lora:te=1>", "there is no LoRA ''"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(shelf: NetworkLibrary, tag: str, warning: str):
    found, warnings = networks(f"a {tag} <lora:two:1>", shelf)
    assert [network.file.name for network in found] == ["two"]
    assert len(warnings) == 1 and warning in warnings[0]


def test_networks_that_the_settings_add(shelf: NetworkLibrary):
    assert with_default_networks("a", "hyper", "one", 0.5, shelf) == "a<hypernet:hyper:0.5><lora:one:0.5>"
    assert with_default_networks("a <lora:one:1>", "None", "one", 0.5, shelf) == "a <lora:one:1>"
    assert with_default_networks("a", "gone", "None", 0.5, shelf) == "a"


def test_hashes_for_the_infotext(shelf: NetworkLibrary):
    found, _ = networks("<lora:alias one:1><hypernet:hyper:1><lora:two:1>", shelf)
    one, two = (shelf.shorthash(network.file) for network in (found[0], found[2]))
    assert hashes_of(found, "lora", shelf) == f"alias one: {one}, two: {two}"
    assert hashes_of(found, "hypernetwork", shelf) == f"hyper: {shelf.shorthash(found[1].file)}"
    assert hashes_of([], "lora", shelf) is None
