"""GGUF headers: what llama.cpp's own package writes is read as its reader reads it; what is broken or hostile gets a
sentence, and costs nothing."""

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from modules.library.checkpoints import CheckpointLibrary
from modules.library.gguf import MAX_ENTRIES, MAX_TENSORS, TYPES, read_gguf_header
from modules.library.header import ModelFileError

KINDS = {name: gguf.GGMLQuantizationType[name] for name, block, _ in TYPES.values() if block == 32}


def save(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **shapes: tuple[int, ...]) -> Path:
    """`tensors`: numbers and how they are to be quantised; `shapes`: the original ones of folded tensors."""
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_string("general.author", "somebody")
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, (numbers, kind) in tensors.items():
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(numbers, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    tensors = {f"a.{kind}": (numbers, kind) for kind in ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0")}
    tensors["folded"] = (numbers.reshape(2, 192), "Q8_0")
    return save(tmp_path_factory.mktemp("gguf") / "a.gguf", tensors, folded=(4, 8, 4, 3))


def test_what_is_read_is_what_their_reader_reads(file: Path) -> None:
    header, theirs = read_gguf_header(file), gguf.GGUFReader(file)
    assert header.metadata["general.architecture"] == "sd1"
    assert header.metadata["general.author"] == "somebody"
    assert header.size == file.stat().st_size
    assert {t.name for t in theirs.tensors} == set(header.tensors)
    for tensor in theirs.tensors:
        info = header.tensors[tensor.name]
        assert info.dtype == tensor.tensor_type.name
        assert (info.start, info.end) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        if tensor.name != "folded":
            assert info.shape == (6, 64)
    assert header.tensors["folded"].shape == (4, 8, 4, 3)


def test_block_sizes_are_theirs() -> None:
    for number, (name, block, size) in TYPES.items():
        assert gguf.GGMLQuantizationType[name] == number
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, size)


def header_of(tensors: int = 1, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (32,), kind: int = 8, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BODY = bytes(4096)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1", "LFS pointer"),
    "noise": (b"\x13\x37" * 64, "no GGUF file"),
    "only the magic": (b"GGUF", "incomplete"),
    "version 1": (header_of(version=1) + BODY, "version 1"),
    "other byte order": (header_of(version=3 << 24) + BODY, "byte order"),
    "a billion tensors": (header_of(tensors=2**30) + BODY, str(MAX_TENSORS)),
    "no tensors": (header_of(tensors=0) + BODY, "no tensors"),
    "many entries": (header_of(entries=2**63) + BODY, str(MAX_ENTRIES)),
    "key without end": (header_of(entries=1) + struct.pack("<Q", 2**62) + BODY, "at most"),
    "text without end": (header_of(entries=1) + text(b"k") + struct.pack("<IQ", 8, 2**62) + BODY, "longer than 16 MiB"),
    "unknown value": (header_of(entries=1) + text(b"k") + struct.pack("<I", 99) + BODY, "unknown kind, 99"),
    "list of lists": (header_of(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + BODY, "unknown kind, 9"),
    "list without end": (header_of(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 10, 2**61) + BODY, "longer than"),
    "texts without end": (header_of(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + BODY, "texts"),
    "key is no text": (header_of(entries=1) + text(b"\xff\xfe") + BODY, "UTF-8"),
    "alignment 0": (header_of(entries=1) + text(b"general.alignment") + struct.pack("<II", 4, 0) + BODY, "alignment"),
    "alignment 3": (header_of(entries=1) + text(b"general.alignment") + struct.pack("<II", 4, 3) + BODY, "alignment"),
    "dimensions": (header_of() + text(b"a") + struct.pack("<I", 2**31) + BODY, "dimensions"),
    "too many weights": (header_of() + tensor(shape=(2**32, 2**32, 2**32)) + BODY, "does not fit blocks"),
    "half a block": (header_of() + tensor(shape=(33,)) + BODY, "does not fit blocks of 32"),
    "unknown type": (header_of() + tensor(kind=77) + BODY, "number 77"),
    "offset": (header_of() + tensor(offset=7) + BODY, "no multiple of 32"),
    "far away": (header_of() + tensor(offset=2**40) + BODY, "bytes are missing"),
    "too short": (header_of() + tensor(shape=(32, 2**20)) + BODY, "bytes are missing"),
    "twice": (header_of(2) + tensor() + tensor(offset=64) + BODY, "one name"),
    "shared": (header_of(2) + tensor() + tensor(b"b") + BODY, "overlap"),
    "cut": (header_of() + tensor()[:-3], "incomplete"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_sentence(tmp_path: Path, name: str) -> None:
    content, told = HOSTILE[name]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=told) as raised:
        read_gguf_header(tmp_path / "bad.gguf")
    assert str(raised.value).startswith("bad.gguf: ")
    (listed,) = CheckpointLibrary([tmp_path], tmp_path / "cache.db").list()
    assert listed.problem == raised.value.reason


def test_a_lying_shape_in_the_metadata_is_refused(tmp_path: Path) -> None:
    numbers = np.zeros((2, 192), np.float32)
    for shape in ((4, 8, 4, 4), (-4, -8, 4, 3)):
        save(tmp_path / "bad.gguf", {"x": (numbers, "Q8_0")}, x=shape)
        with pytest.raises(ModelFileError, match="its metadata say"):
            read_gguf_header(tmp_path / "bad.gguf")


def test_fuzz_nothing_but_a_sentence_comes_of_damage(file: Path, tmp_path: Path) -> None:
    """Bytes changed, cut out, put in: read, or refused in words; never another error, never memory for what is not
    there."""
    whole, chance = file.read_bytes(), random.Random(0)
    head = min(info.start for info in read_gguf_header(file).tensors.values())
    bad, refused = tmp_path / "bad.gguf", 0
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            place = chance.randrange(head)
            how = chance.randrange(3)
            if how == 0:
                damaged[place] = chance.choice([0, 0xFF, 0x7F, chance.randrange(256)])
            elif how == 1:
                del damaged[place : place + chance.randrange(1, 16)]
            else:
                damaged[place : place + 8] = struct.pack("<Q", chance.choice([2**63, 2**64 - 1, 2**31, 0, 1]))
        bad.write_bytes(damaged[: chance.choice([len(damaged), len(damaged), chance.randrange(len(damaged))])])
        try:
            header = read_gguf_header(bad)
        except ModelFileError:
            refused += 1
        else:
            assert all(0 < info.start <= info.end <= header.size for info in header.tensors.values())
    assert 125 < refused < 250


def test_listed_with_a_digest(file: Path, tmp_path: Path) -> None:
    library = CheckpointLibrary([file.parent], tmp_path / "cache.db")
    (found,) = library.list()
    assert found.problem is None
    assert found.model_name == "a"
    hashed: Any = library.hashed(found)
    assert library.find("a").sha256 == hashed.sha256
