"""Saving pictures: choose a path (a number is reserved, also against other processes), encode with the infotext inside,
write whole or not at all. The steps stand alone, so that a worker can note the path before it writes."""

import errno
import io
import logging
import os
import re
import shutil
import struct
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image, PngImagePlugin, features

from modules.gallery.naming import MAX_NAME_BYTES, NamingFacts, expand, next_number, safe_folders, safe_name
from modules.runtime.files import write_whole
from modules.settings.schema import ImageFormat, Settings

log = logging.getLogger(__name__)

Kind = Literal["txt2img", "img2img", "extras", "txt2img grid", "img2img grid"]

MAX_JPEG_EXIF = 65_533  # bytes
STALE_RESERVATION_S = 24 * 3600


class SaveError(Exception):
    """A picture was not saved; nothing of it is on the disk. The message says what, where, why and what to do."""

    def __init__(self, message: str, path: Path, error: int | None = None):
        self.path, self.errno = path, error
        super().__init__(message)


@dataclass(frozen=True)
class SavedImage:
    path: Path
    warning: str | None = None  # the picture is whole, but something beside it is not as asked


def save(
    image: Image.Image,
    infotext: str,
    *,
    root: Path,
    kind: Kind,
    facts: NamingFacts,
    settings: Settings,
    now: datetime,
    suffix: str = "",
) -> SavedImage:
    """All steps in one: for whoever keeps no record of its own."""
    image_format = settings.grid_format if kind.endswith("grid") else settings.samples_format
    data = encode(image, infotext, image_format, settings)
    path = choose_path(root, kind, facts, settings, now, image=image, suffix=suffix)
    write_atomic(path, data)
    return SavedImage(path, write_text(path, infotext, settings))


def choose_path(
    root: Path,
    kind: Kind,
    facts: NamingFacts,
    settings: Settings,
    now: datetime,
    *,
    image: Image.Image | None = None,
    suffix: str = "",
) -> Path:
    """Where the picture will be. Its folder exists and its number is reserved until write_atomic or release; `root` is
    what relative folders of the settings start from."""
    grid = kind.endswith("grid")
    folder = folder_for(root, kind, facts, settings, now, image)
    extension = settings.grid_format if grid else settings.samples_format
    prefix = "grid-" if grid else ""
    decoration = "" if grid and not settings.grid_extended_filename else _decoration(facts, settings, now, grid, image)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = MAX_NAME_BYTES - len(extension) - 1 - len(suffix.encode())
        if grid or settings.save_images_add_number or not decoration:
            width = 4 if grid else 5
            number = _reserve_number(folder, prefix, width)
            stem = f"{prefix}{number:0{width}}"
            name = safe_name(decoration, room - len(stem) - 1)
            return folder / f"{stem}{'-' if name else ''}{name}{suffix}.{extension}"
        name = safe_name(decoration, room - 8)
        return _unnumbered(folder, name + suffix, extension, settings.save_images_replace_action == "Replace")
    except OSError as error:
        raise _save_error(error, folder, None) from error


def folder_for(
    root: Path, kind: Kind, facts: NamingFacts, settings: Settings, now: datetime, image: Image.Image | None = None
) -> Path:
    """The folder of a picture, by the settings; it need not exist."""
    base = {
        "txt2img": settings.outdir_samples or settings.outdir_txt2img_samples,
        "img2img": settings.outdir_samples or settings.outdir_img2img_samples,
        "extras": settings.outdir_samples or settings.outdir_extras_samples,
        "txt2img grid": settings.outdir_grids or settings.outdir_txt2img_grids,
        "img2img grid": settings.outdir_grids or settings.outdir_img2img_grids,
    }[kind]
    folder = root / Path(base.replace("\0", "")).expanduser()
    if not (settings.grid_save_to_dirs if kind.endswith("grid") else settings.save_to_dirs):
        return folder
    pattern = settings.directories_filename_pattern or "[prompt_words]"
    return folder.joinpath(*safe_folders(expand(pattern, facts, now, image, settings.directories_max_prompt_words)))


def encode(image: Image.Image, infotext: str, image_format: ImageFormat, settings: Settings) -> bytes:
    """The bytes of the file, with the infotext inside as A1111 puts it, unless the settings say otherwise."""
    text = infotext.encode("utf-8", "replace").decode("utf-8") if settings.enable_pnginfo else ""
    options: dict[str, Any] = {}
    name = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF"}[image_format]
    if name == "AVIF" and not features.check("avif"):
        raise SaveError("this installation cannot write AVIF; set the format of pictures to png", Path())
    if name == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text("parameters", text)
        options["pnginfo"] = chunks
    else:
        options["quality"] = settings.jpeg_quality
        exif = exif_with_comment(text) if text else b""
        if exif and (name != "JPEG" or len(exif) <= MAX_JPEG_EXIF):
            options["exif"] = exif
        if name == "WEBP":
            options["lossless"] = settings.webp_lossless
        image = _plain(image, alpha=name != "JPEG")
    buffer = io.BytesIO()
    try:
        image.save(buffer, name, **options)
    except (OSError, ValueError) as error:
        size = f"{image.width}×{image.height}"
        raise SaveError(
            f"a picture of {size} cannot be written as {name} ({error}); set the format to png", Path()
        ) from error
    return buffer.getvalue()


def write_atomic(path: Path, data: bytes) -> None:
    """The file is whole and on the disk when this returns; else SaveError, and no trace. Ends the reservation."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise _save_error(error, path, len(data)) from error
    finally:
        release(path)


def write_text(path: Path, infotext: str, settings: Settings) -> str | None:
    """The text file beside a saved picture, where it is wanted or the picture cannot hold the infotext; a warning if
    either is so or it fails."""
    too_long = settings.enable_pnginfo and path.suffix in (".jpg", ".jpeg") and not fits_jpeg(infotext)
    if not (settings.save_txt or too_long) or not infotext:
        return None
    try:
        write_atomic(path.with_suffix(".txt"), f"{infotext}\n".encode("utf-8", "replace"))
    except SaveError as error:
        return str(error)
    return "the infotext is too long for a JPEG; it is in a text file beside it" if too_long else None


def fits_jpeg(infotext: str) -> bool:
    return len(exif_with_comment(infotext)) <= MAX_JPEG_EXIF


def release(path: Path) -> None:
    """Ends the reservation of a path that is written, or not wanted any more."""
    number = re.match(r"(grid-\d{4,9}|\d{5,9})(?=[-.])", path.name, re.ASCII)
    for stem in {path.stem, number[0] if number else path.stem}:
        try:
            _reservation(path.parent, stem).unlink(missing_ok=True)
        except OSError as error:  # the name stays unused; nothing else depends on it
            log.warning("the mark of %s could not be removed: %s", path.name, error)


def exif_with_comment(text: str) -> bytes:
    """EXIF with nothing but a UserComment, as piexif and A1111 write it: big-endian, one sub-directory, UTF-16BE."""
    comment = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    main = struct.pack(">2sHIHHHIII", b"MM", 42, 8, 1, 0x8769, 4, 1, 26, 0)
    sub = struct.pack(">HHHII", 1, 0x9286, 7, len(comment), 40)  # piexif leaves out the pointer to a next directory
    return b"Exif\0\0" + main + sub + comment


def _decoration(facts: NamingFacts, settings: Settings, now: datetime, grid: bool, image: Image.Image | None) -> str:
    in_folders = settings.grid_save_to_dirs if grid else settings.save_to_dirs
    pattern = settings.samples_filename_pattern or ("[seed]" if in_folders else "[seed]-[prompt_spaces]")
    return safe_name(expand(pattern, facts, now, image, settings.directories_max_prompt_words))


def _reserve_number(folder: Path, prefix: str, width: int) -> int:
    """A number that nobody has: an empty hidden file marks it until the picture is there."""
    number = next_number(folder, prefix)
    while True:
        mark = _reservation(folder, f"{prefix}{number:0{width}}")
        if _create(mark):
            taken = next_number(folder, prefix)
            if taken <= number:
                return number
            mark.unlink(missing_ok=True)  # another process was faster between our look and our mark
            number = taken
        else:
            _forget_if_stale(mark)
            number += 1


def _unnumbered(folder: Path, stem: str, extension: str, replace: bool) -> Path:
    if replace:
        return folder / f"{stem}.{extension}"
    for count in range(100_000):
        name = f"{stem}-{count}" if count else stem
        path, mark = folder / f"{name}.{extension}", _reservation(folder, name)
        if path.exists() or not _create(mark):
            continue
        if not path.exists():
            return path
        mark.unlink(missing_ok=True)
    raise SaveError(f"{folder} is full of pictures named {stem}; change the pattern of file names", folder)


def _create(path: Path) -> bool:
    """Whether this call, and no other, made the file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True


def _reservation(folder: Path, stem: str) -> Path:
    return folder / f".{stem}.reserved"


def _forget_if_stale(mark: Path) -> None:
    try:
        if time.time() - mark.stat().st_mtime > STALE_RESERVATION_S:
            mark.unlink(missing_ok=True)
    except FileNotFoundError:
        return


def _plain(image: Image.Image, alpha: bool) -> Image.Image:
    """A mode that lossy formats can hold."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    keeps_alpha = alpha and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info)
    return image.convert("RGBA" if keeps_alpha else "RGB")


def _save_error(error: OSError, path: Path, needed: int | None) -> SaveError:
    """What happened, in words: what is needed, what there is, and what to do."""
    here = path if path.is_dir() else path.parent
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        need = f" (need {_bytes(needed)}, free {_free(here)})" if needed is not None else f" (free {_free(here)})"
        reason, advice = f"the disk is full{need}", "delete something, or choose another folder in the settings"
    else:
        reason, advice = _REASONS.get(error.errno or 0, (error.strerror or str(error), "check the folder and its disk"))
    return SaveError(f"the picture was not saved to {path}: {reason}; {advice}", path, error.errno)


_REASONS = {
    errno.EROFS: ("the disk is read-only", "choose another folder in the settings, or mount it writable"),
    errno.EACCES: (
        "writing there is not permitted",
        "change the folder's permissions, or choose another in the settings",
    ),
    errno.EPERM: (
        "writing there is not permitted",
        "change the folder's permissions, or choose another in the settings",
    ),
    errno.ENOTDIR: ("a part of that path is a file, not a folder", "rename that file, or choose another folder"),
    errno.EEXIST: ("there is a file where the folder should be", "rename that file, or choose another folder"),
    errno.EISDIR: ("there is a folder of that name", "rename it, or change the pattern of file names"),
    errno.EFBIG: ("the file would be larger than is allowed", "raise the limit on file sizes (ulimit -f)"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter folder or pattern in the settings"),
    errno.EIO: ("the disk reports an error", "check the disk"),
    errno.ELOOP: ("the path is a loop of links", "choose another folder in the settings"),
}


def _free(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return _bytes(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"
