import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from modules.library.header import MAX_HEADER_BYTES, ModelFileError, TensorInfo, printable, read_header
from tests.ending import ends


def file(folder: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(start: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def why(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert path.name in str(caught.value) and len(str(caught.value)) < 400
    return caught.value.reason


def test_a_sound_file_as_the_library_writes_it(tmp_path: Path):
    import numpy as np

    path = tmp_path / "a.safetensors"
    arrays = {
        "x": np.zeros((2, 3), np.float16),
        "y": np.ones((5,), np.int64),
        "scalar": np.array(1.0),
        "none": np.zeros((0, 4)),
    }
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"} and header.size == path.stat().st_size
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "x": ("F16", (2, 3)),
        "y": ("I64", (5,)),
        "scalar": ("F64", ()),
        "none": ("F64", (0, 4)),
    }
    info = header.tensors["y"]
    assert path.read_bytes()[info.start : info.end] == arrays["y"].tobytes()


def test_the_measured_checkpoint(golden: Path):
    header = read_header(golden / "models" / "tiny-sd1.safetensors")
    name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert len(header.tensors) == 1003 and header.tensors[name] == TensorInfo("I64", (1, 77), 131488, 132104)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"1234567", "only 7 bytes"),
        (b"<!DOCTYPE html><html><body>Please log in</body>", "HTML page"),
        (b"\n  <html>" + b" " * 100, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (pickle.dumps({"a": 1}, protocol=2), "pickle"),
        (b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "picture"),
        (b'{"error": "not found, please try again"}', "JSON"),
        (bytes(5000), "only zeros"),
        (b"\xff" * 100, "corrupt header"),
        (struct.pack("<Q", 2**63) + bytes(100), "corrupt header: it claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 99_000_000) + b"{" * 100, "corrupt header"),
        (struct.pack("<Q", 5000) + b"{" * 100, "incomplete"),
        (struct.pack("<Q", 4) + b"abcd", "corrupt header"),
    ],
)
def test_it_says_what_a_file_really_is(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert word in why(path)


def test_a_zip_is_named(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"payload")
    assert "zip archive" in why(path)


@pytest.mark.parametrize(
    ("header", "size", "word"),
    [
        ({}, 0, "no tensors"),
        ({"__metadata__": {"a": "b"}}, 0, "no tensors"),
        ({"a": tensor(0, 8), "b": tensor(8, 16)}, 16, None),
        ({"b": tensor(8, 16), "a": tensor(0, 8)}, 16, None),
        ({"a": tensor(0, 8)}, 4, "incomplete: 4 of"),
        ({"a": tensor(0, 8)}, 9, "1 bytes follow"),
        ({"a": tensor(4, 8)}, 8, "overlap or leave gaps"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "overlap or leave gaps"),
        ({"a": tensor(0, 8), "b": tensor(12, 16)}, 16, "overlap or leave gaps"),
        ({"a": tensor(0, 8, [3])}, 8, "'a' needs 12 bytes for its shape, its offsets give 8"),
        ({"a": tensor(0, 8, [2**62, 2**62])}, 8, "too many"),
        ({"a": tensor(0, 8, [-2])}, 8, "shape"),
        ({"a": tensor(0, 8, [True, 2])}, 8, "shape"),
        ({"a": tensor(0, 8, [1] * 17)}, 8, "shape"),
        ({"a": tensor(0, 8, [2.0])}, 8, "shape"),
        ({"a": tensor(8, 0, [2])}, 8, "offsets"),
        ({"a": {**tensor(0, 8), "data_offsets": [0]}}, 8, "entry of 'a'"),
        ({"a": {**tensor(0, 8), "dtype": "X9"}}, 8, "entry of 'a'"),
        ({"a": {**tensor(0, 8), "dtype": []}}, 8, "entry of 'a'"),
        ({"a": 5}, 8, "entry of 'a'"),
        ({"a": None}, 8, "entry of 'a'"),
        ({"a": tensor(0, 8), "__metadata__": {"a": 1}}, 8, "metadata"),
        ({"a": tensor(0, 8), "__metadata__": []}, 8, "metadata"),
    ],
)
def test_the_layout_must_hold(tmp_path: Path, header: dict[str, Any], size: int, word: str | None):
    path = file(tmp_path, header, bytes(size))
    if word is None:
        assert set(read_header(path).tensors) == {"a", "b"}
    else:
        assert word in why(path)


@pytest.mark.parametrize(
    "raw", [b"[1]   ", b"{" * 60_000, b'{"a":' * 60_000, b"{\xff\xfe}", b'{"a":' + b"9" * 50_000 + b"}"]
)
def test_headers_that_are_no_json_object(tmp_path: Path, raw: bytes):
    assert "corrupt header" in why(file(tmp_path, raw, bytes(8)))


def test_hostile_headers_are_refused_before_they_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modules.library.header.json.loads", lambda raw: pytest.fail("parsed"))
    million = b",".join(b'"a%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' % n for n in range(250_000))
    fat = b'{"__metadata__":{"a":"' + b"x" * (MAX_HEADER_BYTES + 1) + b'"}}'
    keys = b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(1_000_000)) + b"}}"
    for raw in (b"{" + million + b"}", fat, keys):
        assert "corrupt header" in why(file(tmp_path, raw))


def test_a_deep_header_ends(tmp_path: Path):
    path = file(tmp_path, b"[" * 10_000_000)
    with ends():
        assert "corrupt header" in why(path)


def test_too_many_tensors(tmp_path: Path):
    many = {f"{n}": tensor(0, 0, [0]) for n in range(65_537)}
    assert "65537 tensors, the limit is 65536" in why(file(tmp_path, many))


def test_no_regular_file_is_never_waited_for(tmp_path: Path):
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "folder.safetensors"
    os.mkfifo(pipe)
    folder.mkdir()
    assert why(pipe) == "is a named pipe, not a file"
    assert why(folder) == "is a folder, not a file"
    assert "cannot be read" in why(tmp_path / "nothing.safetensors")
    assert why(Path("/dev/zero")) == "is a device, not a file"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except ModelFileError as error:
        assert error.reason


def test_names_are_printable():
    assert printable("a\nb\x1b[0m") == r"a\nb\x1b[0m"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("\u202eabc") == r"\u202eabc" and printable("日本 é.safetensors") == "日本 é.safetensors"
