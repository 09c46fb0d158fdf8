import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from modules.gallery.save import encode, exif_with_comment
from modules.generation.infotext import parse
from modules.imaging.decode import ImageError
from modules.imaging.metadata import named_tags, read_infotext, read_metadata, user_comment
from modules.settings.schema import Settings
from tests.ending import ends
from tests.golden import DATA, golden_cases
from tests.imaging.test_decode import chunk, pixels, png

A1111 = DATA / "a1111"
ANSWER = json.loads((A1111 / "png_info.json").read_text("utf-8"))
FORMATS = ["png", "jpg", "webp"] + (["avif"] if features.check("avif") else [])


def test_png_info_answers_as_a1111():
    infotext, items = read_infotext((A1111 / "base.png").read_bytes())
    assert (infotext, items, parse(infotext)) == (ANSWER["info"], ANSWER["items"], ANSWER["parameters"])


@pytest.mark.parametrize("name", ["00006-42.jpg", "00007-42.webp"])
def test_exif_as_a1111_writes_it(name: str):
    infotext, items = read_infotext((A1111 / name).read_bytes())
    assert infotext == ANSWER["info"]
    assert items == {"exif comment": ANSWER["info"]}


def test_our_exif_block_is_byte_for_byte_theirs():
    data = (A1111 / "00006-42.jpg").read_bytes()
    assert exif_with_comment(ANSWER["info"]) in data


def test_every_measured_picture(golden: Path):
    count = 0
    for name, case in golden_cases().items():
        path = golden / "cases" / f"{name}.png"
        if path.exists() and "script_name" not in case["request"]:
            assert read_infotext(path.read_bytes()) == (case["infotexts"][0], {}), name
            count += 1
    assert count > 140


TEXTS = ["plain", "é ü ÿ", "日本 🍎 \u202e", "a\nb\r\nc", "nul \0 inside", "tab\t\x1b[0m", "x" * 20_000, "ø" * 20_000]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_written_is_read(image_format: str, text: str):
    data = encode(Image.new("RGB", (16, 16)), text, image_format, Settings())  # type: ignore[arg-type]
    assert read_infotext(data)[0] == text


@given(st.text())
def test_any_prompt_goes_round_in_png(text: str):
    data = encode(Image.new("RGB", (8, 8)), text, "png", Settings())
    assert read_infotext(data)[0] == text.encode("utf-8", "replace").decode()


def test_other_texts_are_items():
    data = png(4, 4, chunk(b"tEXt", b"Software\0NovelAI"), chunk(b"tEXt", b"prompt\0{}"), pixels(4, 4))
    assert read_infotext(data) == ("", {"Software": "NovelAI", "prompt": "{}"})


def test_bombs_and_crowds_are_cut_and_said():
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 50_000_000))
    metadata = read_metadata(png(4, 4, bomb, pixels(4, 4)))
    assert metadata.infotext == "a" * 2**20 and "truncated" in metadata.warnings[0]
    crowd = b"".join(chunk(b"tEXt", b"key%d\0value" % number) for number in range(10_000))
    with ends():
        metadata = read_metadata(png(4, 4, crowd, pixels(4, 4)))
    assert len(metadata.items) == 200 and "left out" in metadata.warnings[0]
    fat = b"".join(chunk(b"iTXt", b"XML:com.adobe.xmp%d\0\0\0\0\0" % n + b"x" * 900_000) for n in range(60))
    metadata = read_metadata(png(4, 4, fat, pixels(4, 4)))
    assert sum(map(len, metadata.items.values())) < 6 * 2**20 and metadata.warnings


def test_damaged_files_give_what_can_be_read():
    whole = encode(Image.new("RGB", (64, 64)), "a\nSteps: 1", "png", Settings())
    metadata = read_metadata(whole[:-20])
    assert metadata.infotext == "a\nSteps: 1" and "damaged" in metadata.warnings[0]
    assert read_metadata(png(4, 4, chunk(b"zTXt", b"parameters\0\0not zlib"), pixels(4, 4))).infotext == ""
    with pytest.raises(ImageError, match="damaged"):
        read_metadata(b"\xff\xd8\xff\xe0")
    with pytest.raises(ImageError, match="no picture"):
        read_metadata(b"text")


def test_comments_of_other_programs():
    def block(order: str, raw: bytes) -> bytes:
        mark = b"MM" if order == ">" else b"II"
        head = struct.pack(order + "2sHIHHHIII", mark, 42, 8, 1, 0x8769, 4, 1, 26, 0)
        return head + struct.pack(order + "HHHII", 1, 0x9286, 7, len(raw), 40) + raw

    text = "prompt, Steps"
    for order in "><":
        assert user_comment(block(order, b"UNICODE\0" + text.encode("utf-16-le")))[0] == text
        assert user_comment(block(order, b"UNICODE\0" + text.encode("utf-16-be")))[0] == text
        assert user_comment(block(order, b"ASCII\0\0\0" + text.encode()))[0] == text
        assert user_comment(block(order, bytes(8) + text.encode()))[0] == text


@given(st.binary(max_size=200), st.sampled_from([b"", b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0", b"Exif\0\0MM\0*"]))
def test_any_exif_block_is_read_or_ignored(tail: bytes, head: bytes):
    text, cut = user_comment(head + tail)
    assert isinstance(text, str) and not cut


def test_jpeg_without_exif():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", dpi=(72, 72))
    assert read_infotext(buffer.getvalue()) == ("", {})


def test_texts_in_the_fields_of_a_camera():
    def tag(number: int, text: bytes, offset: int, order: str = "<") -> bytes:
        return struct.pack(f"{order}HHII", number, 2, len(text), offset)

    first, second = b'workflow:{"a": 1}\0', b"Some camera\0"
    block = struct.pack("<2sHIH", b"II", 42, 8, 2) + tag(0x010F, first, 38) + tag(0x0110, second, 38 + len(first))
    exif = b"Exif\0\0" + block + bytes(4) + first + second
    assert named_tags(exif) == {"workflow": '{"a": 1}', "Model": "Some camera"}
    for end in range(len(exif)):
        named_tags(exif[:end])
    assert named_tags(b"") == {}
