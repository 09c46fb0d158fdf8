"""Input pictures: kept once, found again, and dropped when no job names them any more."""

import os

import pytest
from PIL import Image

from modules.jobs.inputs import Inputs, UnknownPicture


def test_the_same_picture_is_kept_once_and_comes_back_as_it_was(tmp_path):
    inputs = Inputs(tmp_path)
    picture = Image.new("RGBA", (5, 3), (1, 2, 3, 128))
    id = inputs.put(picture)
    assert inputs.put(picture.copy()) == id and id in inputs
    assert len(list(tmp_path.glob("*/*"))) == 1
    found = inputs.get(id)
    assert (found.mode, found.size, found.tobytes()) == (picture.mode, picture.size, picture.tobytes())
    assert inputs.put(Image.new("RGB", (5, 3))) != id


@pytest.mark.parametrize("id", ["", "../../secret", "f" * 63, "F" * 64, "f" * 64])
def test_what_is_not_there_is_told(tmp_path, id):
    assert id not in Inputs(tmp_path)
    with pytest.raises(UnknownPicture):
        Inputs(tmp_path).get(id)


def test_a_damaged_file_is_told(tmp_path):
    inputs = Inputs(tmp_path)
    id = inputs.put(Image.new("RGB", (40, 40), "red"))
    path = next(tmp_path.glob("*/*.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UnknownPicture, match="send it again"):
        inputs.get(id)


def test_old_pictures_that_no_job_names_are_dropped(tmp_path):
    inputs = Inputs(tmp_path)
    old, named, new = (inputs.put(Image.new("RGB", (2, 2), colour)) for colour in ("red", "green", "blue"))
    for id in (old, named):
        os.utime(tmp_path / id[:2] / f"{id}.png", (0, 0))
    inputs.keep_only({named})
    assert (old in inputs, named in inputs, new in inputs) == (False, True, True)
