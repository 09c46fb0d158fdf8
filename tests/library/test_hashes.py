import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from modules.library.hashes import body_sha256_of, digests_of, legacy_hash, sha256_of
from modules.library.header import ModelFileError


def model(path: Path, weights: bytes, header: bytes = b"{}") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + weights)
    return path


def test_hashes_as_measured(golden: Path):
    facts = json.loads((golden / "hashes.json").read_text())
    for name, known in facts["networks"].items():
        path = golden / "models" / f"{name}.safetensors"
        assert body_sha256_of(path) == known["hash"] == digests_of(path).body_sha256, name
        assert digests_of(path).sha256 == sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, known in facts["embeddings"].items():
        (path,) = (golden / "models").glob(f"{name}.*")
        assert sha256_of(path) == known["hash"], name
    checkpoint = golden / "models" / facts["checkpoint"]["name"]
    assert digests_of(checkpoint).sha256 == facts["checkpoint"]["sha256"]
    assert legacy_hash(checkpoint) == facts["checkpoint"]["legacy_hash"]


def test_the_header_does_not_count(tmp_path: Path):
    weights = bytes(range(256)) * 40_000  # more than one piece
    plain = model(tmp_path / "a.safetensors", weights)
    named = model(tmp_path / "b.safetensors", weights, b'{"__metadata__":{"a":"b"}}' + b" " * 5_000_000)
    assert body_sha256_of(plain) == body_sha256_of(named) == hashlib.sha256(weights).hexdigest()
    assert sha256_of(plain) != sha256_of(named)
    pickled = tmp_path / "c.pt"
    pickled.write_bytes(weights)
    assert digests_of(pickled).body_sha256 == digests_of(pickled).sha256 == sha256_of(pickled)


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 2**63), struct.pack("<Q", 3) + b"{}"])
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x.safetensors: its header is longer than the file"):
        body_sha256_of(path)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("hashing", [sha256_of, body_sha256_of, digests_of])
def test_hashing_can_be_watched_and_stopped(tmp_path: Path, hashing: Callable[..., object]):
    path = model(tmp_path / "x.safetensors", bytes(9 * 2**20))
    seen: list[tuple[int, int]] = []
    hashing(path, lambda done, total: seen.append((done, total)))
    assert len(seen) == 3 and seen[-1] == (path.stat().st_size,) * 2

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        hashing(path, stop)


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path):
    path = model(tmp_path / "x.safetensors", bytes(9 * 2**20))

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    with pytest.raises(ModelFileError, match="changed while it was read"):
        sha256_of(path, grow)
