"""What the page knows of a checkpoint from files alone."""

import json
import struct
from pathlib import Path

import pytest

from modules.library.checkpoints import Checkpoint
from modules.library.hashes import Fingerprint
from modules.web.checkpoints import size_of, words_of


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
    assert words_of(found) == []
    (tmp_path / "small.words.txt").write_text("# what it knows\nred apple\n\n  pizza \n", encoding="utf-8")
    assert words_of(found) == ["red apple", "pizza"]
