import errno
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

import modules.runtime.files as files
from modules.gallery.naming import NamingFacts
from modules.gallery.save import (
    Kind,
    SavedImage,
    SaveError,
    choose_path,
    encode,
    exif_with_comment,
    release,
    save,
    write_atomic,
    write_text,
)
from modules.imaging.metadata import read_infotext
from modules.settings.schema import Settings
from tests.golden import REPOSITORY

NOW = datetime(2026, 11, 22, 20, 53, 59)
INFOTEXT = "a red circle on a blue background\nNegative prompt: blurry, green\nSteps: 8, Sampler: Euler a, Seed: 42"
FACTS = NamingFacts(
    prompt="a red circle on a blue background",
    negative_prompt="blurry, green",
    seed=42,
    steps=8,
    cfg_scale=7.0,
    width=128,
    height=192,
    sampler="Euler a",
    schedule="Automatic",
    model_name="tiny-sd1",
    model_hash="c4346f8673",
)
PICTURE = Image.effect_noise((64, 48), 80).convert("RGB")


def keep(
    root: Path, kind: Kind = "txt2img", facts: NamingFacts = FACTS, text: str = INFOTEXT, **changes: Any
) -> SavedImage:
    settings = Settings().with_overrides(changes)
    return save(PICTURE, text, root=root, kind=kind, facts=facts, settings=settings, now=NOW)


def relative(saved: SavedImage, root: Path) -> str:
    assert saved.path.is_file() and saved.path.stat().st_size > 100
    return saved.path.relative_to(root).as_posix()


def test_paths_as_measured(golden: Path, tmp_path: Path):
    """The txt2img part of files.json, in order, in one folder: the same requests give the same names."""
    saved_here = {"single", "batch3_grid", "grid_format_jpg", "jpg", "webp", "txt", "nopnginfo", "pattern", "no_number"}
    checked = 0
    for case in json.loads((golden / "files" / "files.json").read_text("utf-8")):
        if case["name"] not in saved_here:
            continue
        request = case["request"]
        overrides = {k: v for k, v in request["override_settings"].items() if k != "randn_source"}
        count = request.get("batch_size", 1)
        ours = [keep(tmp_path, facts=replace(FACTS, seed=42 + n), **overrides) for n in range(count)]
        ours += [keep(tmp_path, "txt2img grid", **overrides)] if count > 1 else []
        wanted = {file["path"] for file in case["files"] if file["path"].startswith("outputs") and "size" in file}
        assert {relative(saved, tmp_path) for saved in ours} == wanted, case["name"]
        checked += len(ours)
    assert checked == 14


def test_without_folders_the_prompt_is_in_the_name(tmp_path: Path):
    saved = keep(tmp_path, save_to_dirs=False)
    assert relative(saved, tmp_path) == "outputs/txt2img-images/00000-42-a red circle on a blue background.png"


def test_one_folder_for_all_and_absolute_ones(tmp_path: Path):
    assert relative(keep(tmp_path, outdir_samples="all"), tmp_path) == "all/2026-11-22/00000-42.png"
    elsewhere = tmp_path / "elsewhere"
    saved = keep(tmp_path / "root", outdir_txt2img_samples=str(elsewhere), save_to_dirs=False)
    assert saved.path.parent == elsewhere


@pytest.mark.parametrize("image_format", ["png", "jpg", "jpeg", "webp"] + (["avif"] if features.check("avif") else []))
def test_formats_carry_the_infotext(tmp_path: Path, image_format: str):
    saved = keep(tmp_path, samples_format=image_format)
    data = saved.path.read_bytes()
    assert saved.path.suffix == f".{image_format}" and saved.warning is None
    assert read_infotext(data)[0] == INFOTEXT
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == PICTURE.size
    assert read_infotext(keep(tmp_path, samples_format=image_format, enable_pnginfo=False).path.read_bytes()) == (
        "",
        {},
    )


def test_png_text_is_where_a1111_looks_for_it():
    with Image.open(io.BytesIO(encode(PICTURE, INFOTEXT, "png", Settings()))) as image:
        assert image.info == {"parameters": INFOTEXT}
    assert b"tEXtparameters\0a red" in encode(PICTURE, INFOTEXT, "png", Settings())
    assert b"iTXtparameters\0\0\0\0\0" + "日".encode() in encode(PICTURE, "日", "png", Settings())


def test_quality_and_loss():
    sizes = [len(encode(PICTURE, "", "jpg", Settings().with_overrides({"jpeg_quality": q}))) for q in (10, 95)]
    assert sizes[0] < sizes[1]
    lossless = encode(PICTURE, "", "webp", Settings().with_overrides({"webp_lossless": True}))
    with Image.open(io.BytesIO(lossless)) as image:
        assert image.convert("RGB").tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16"])
@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_all_modes_can_be_written(mode: str, image_format: Any):
    image = Image.new("I;16", (8, 8), 40_000) if mode == "I;16" else PICTURE.convert(mode)
    with Image.open(io.BytesIO(encode(image, INFOTEXT, image_format, Settings()))) as again:
        assert again.size == image.size
        if mode == "I;16" and image_format == "jpg":
            assert abs(again.convert("L").getpixel((0, 0)) - 156) < 3  # type: ignore[operator]


def test_text_files(tmp_path: Path):
    saved = keep(tmp_path, save_txt=True)
    assert saved.path.with_suffix(".txt").read_text("utf-8") == INFOTEXT + "\n"
    long = "x" * 40_000
    saved = keep(tmp_path, text=long, samples_format="jpg")
    assert "too long for a JPEG" in str(saved.warning)
    assert saved.path.with_suffix(".txt").read_text("utf-8") == long + "\n"
    assert read_infotext(saved.path.read_bytes())[0] == ""
    assert len(exif_with_comment(long)) > 65_533


def test_a_text_file_that_fails_is_a_warning(tmp_path: Path):
    path = tmp_path / "a.png"
    (tmp_path / "a.txt").mkdir()
    warning = write_text(path, INFOTEXT, Settings().with_overrides({"save_txt": True}))
    assert warning is not None and "there is a folder of that name" in warning


def test_unnumbered_names(tmp_path: Path):
    first = keep(tmp_path, save_images_add_number=False)
    assert first.path.name == "42.png" == keep(tmp_path, save_images_add_number=False).path.name
    adding = {"save_images_add_number": False, "save_images_replace_action": "Add number suffix"}
    assert [keep(tmp_path, **adding).path.name for _ in range(2)] == ["42-1.png", "42-2.png"]
    assert keep(tmp_path, samples_filename_pattern="[none]").path.name == "00043.png"
    assert keep(tmp_path, samples_filename_pattern="[none]", save_images_add_number=False).path.name == "00044.png"
    assert not list(tmp_path.rglob(".*"))


HOSTILE = [
    "../../../../tmp/x",
    "C:\\x",
    "con",
    "x. ",
    "🍎" * 300,
    "日" * 3000,
    "\0\n\r",
    "..",
    "a/b",
    "~",
    "\u202e",
    "\ud800",
]


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("pattern", ["[prompt]", "[prompt_spaces]", "../../x[prompt]", "/[prompt]/.."])
@pytest.mark.parametrize("numbered", [True, False])
def test_hostile_prompts_stay_inside(tmp_path: Path, prompt: str, pattern: str, numbered: bool):
    changes = {
        "samples_filename_pattern": pattern,
        "directories_filename_pattern": pattern,
        "save_images_add_number": numbered,
    }
    saved = keep(tmp_path, facts=replace(FACTS, prompt=prompt), **changes)
    assert saved.path.resolve().is_relative_to((tmp_path / "outputs" / "txt2img-images").resolve())
    assert len(os.fsencode(saved.path.name)) <= 200 and saved.path.suffix == ".png"
    for part in saved.path.relative_to(tmp_path).parts:
        assert not set(part) & set('<>:"\\|?*\0\n\r') and part == part.rstrip(" .")
        assert part.split(".")[0].upper() not in ("CON", "NUL")


def test_a_reserved_number_is_nobody_elses(tmp_path: Path):
    settings = Settings()
    paths = [choose_path(tmp_path, "txt2img", FACTS, settings, NOW) for _ in range(3)]
    assert [path.name for path in paths] == ["00000-42.png", "00001-42.png", "00002-42.png"]
    assert not any(path.exists() for path in paths)
    release(paths[1])
    assert choose_path(tmp_path, "txt2img", FACTS, settings, NOW) == paths[1]
    for path in paths:
        write_atomic(path, b"picture")
    assert sorted(os.listdir(paths[0].parent)) == [path.name for path in paths]
    write_atomic(paths[0], b"again")  # a worker that starts anew may write the same path
    assert paths[0].read_bytes() == b"again"


def test_marks_of_dead_processes_are_forgotten(tmp_path: Path):
    path = choose_path(tmp_path, "txt2img", FACTS, Settings(), NOW)
    [mark] = path.parent.iterdir()
    yesterday = time.time() - 25 * 3600
    os.utime(mark, (yesterday, yesterday))
    assert choose_path(tmp_path, "txt2img", FACTS, Settings(), NOW).name == "00001-42.png"
    assert choose_path(tmp_path, "txt2img", FACTS, Settings(), NOW).name == "00000-42.png"


def _save_many(root: Path) -> list[str]:
    return [keep(root).path.name for _ in range(15)]


def test_processes_never_share_a_number(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        names = [name for batch in pool.map(_save_many, [tmp_path] * 3) for name in batch]
        pool.close()
        pool.join()
    assert len(set(names)) == 45
    assert sorted(names) == sorted(os.listdir(tmp_path / "outputs/txt2img-images/2026-11-22"))


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full (need "),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "writing there is not permitted"),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_failures_are_sentences_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
):
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(SaveError) as caught:
        keep(tmp_path)
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) and caught.value.errno == code
    assert nothing_left(tmp_path)
    monkeypatch.undo()
    assert keep(tmp_path).path.name == "00000-42.png"


def test_a_real_limit_on_the_size_of_files(tmp_path: Path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from modules.gallery.save import SaveError, write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomic(Path(sys.argv[1]), bytes(5000))\n"
        "except SaveError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "larger than is allowed" in done.stdout and os.listdir(tmp_path) == []


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(SaveError, match="a file"):
        keep(tmp_path)
    (tmp_path / "outputs").unlink()
    assert keep(tmp_path).path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(SaveError, match="not permitted"):
        keep(tmp_path)
    tmp_path.chmod(0o700)


def test_a_folder_deleted_meanwhile_is_made_again(tmp_path: Path):
    path = choose_path(tmp_path, "txt2img", FACTS, Settings(), NOW)
    release(path)
    path.parent.rmdir()
    write_atomic(path, b"picture")
    assert path.read_bytes() == b"picture"


def test_a_picture_that_a_format_cannot_hold():
    wide = Image.new("RGB", (17_000, 4))
    with pytest.raises(SaveError, match="17000×4 cannot be written as WEBP.*set the format to png"):
        encode(wide, "", "webp", Settings())


def test_a_killed_writer_leaves_no_half_picture(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from modules.gallery.save import write_atomic\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n    write_atomic(Path(sys.argv[1]), bytes([n % 256]) * 2_000_000)\n    n += 1\n"
    )
    path = tmp_path / "a.png"
    for wait in (0.05, 0.09, 0.13):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            assert writer.stdout.readline() == "ready\n"
            while not path.exists():  # a disk may take its time
                time.sleep(0.005)
            time.sleep(wait)
            writer.kill()
        data = path.read_bytes()
        assert len(data) == 2_000_000 and len(set(data)) == 1


def test_img2img_and_its_grids_have_folders_of_their_own(tmp_path: Path):
    assert relative(keep(tmp_path, "img2img"), tmp_path).startswith("outputs/img2img-images/")
    assert relative(keep(tmp_path, "img2img grid"), tmp_path).startswith("outputs/img2img-grids/")
    assert relative(keep(tmp_path, "img2img grid", outdir_grids="g"), tmp_path).startswith("g/")
