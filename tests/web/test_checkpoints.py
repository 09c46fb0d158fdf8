"""What the page knows of a checkpoint from files alone."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from modules.library.checkpoints import Checkpoint
from modules.library.hashes import Fingerprint
from modules.web.checkpoints import Defaults, defaults_of, followed, size_of, words_of


def checkpoint(folder: Path, metadata: dict[str, str] | None = None) -> Checkpoint:
    path = folder / "small.safetensors"
    tensor = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(({"__metadata__": metadata} if metadata else {}) | tensor).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return Checkpoint(path, path.name, Fingerprint.of(path.stat()))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("128x128", (128, 128)),
        ("768x1024", (768, 1024)),
        ("100x9999", (96, 2048)),
        ("<b>x</b>", (512, 512)),
        ("", (512, 512)),
    ],
)
def test_the_size_stands_in_the_metadata(tmp_path: Path, written: str, size: tuple[int, int]) -> None:
    assert size_of(checkpoint(tmp_path, {"modelspec.resolution": written})) == size


def test_a_broken_file_has_the_usual_size(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    found.path.write_bytes(b"nothing")
    assert size_of(found) == (512, 512)


def test_words_stand_beside_it(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    assert words_of(found) == ([], [])
    (tmp_path / "small.words.txt").write_text("# what it knows\nred apple\n\n  pizza \n+ 3d style\n", encoding="utf-8")
    assert words_of(found) == (["red apple", "pizza"], ["3d style"])


def test_what_nobody_touched_follows_the_checkpoint(tmp_path: Path) -> None:
    """LCM checkpoints make nothing good of 20 steps at a CFG scale of 7."""
    usual, found = Defaults(), checkpoint(tmp_path)
    assert defaults_of(found) == usual
    quick = defaults_of(replace(found, name="dream-lcm.safetensors"))
    assert quick.sampling == ("LCM", "Automatic", 8, 1.5)
    assert followed([512, 512, "DPM++ 2M", "Automatic", 20, 7], usual, quick) == [512, 512, "LCM", "Automatic", 8, 1.5]
    kept = followed([640, 512, "DPM++ 2M", "Automatic", 25, 7], usual, Defaults((1024, 1024), quick.sampling))
    assert kept == [gr.skip()] * 6


def test_sdxl_is_large_where_nobody_says_so(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    names = ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight"]
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + bytes(8))
    assert size_of(Checkpoint(path, path.name, Fingerprint.of(path.stat()))) == (1024, 1024)
