from datetime import datetime
from pathlib import Path

import pytest

from modules.gallery.batch import BatchError, BatchItem, batch_of, name_pattern, pictures_in
from modules.gallery.naming import NamingFacts, expand


def folder(root: Path, name: str, *files: str) -> Path:
    made = root / name
    made.mkdir()
    for file in files:
        (made / file).touch()
    return made


def test_pictures_in_natural_order_and_nothing_else(tmp_path: Path):
    pictures = folder(tmp_path, "in", "10.png", "2.JPG", "a.webp", "notes.txt", "b.gif")
    (pictures / "below.png").mkdir()
    assert [path.name for path in pictures_in(pictures)] == ["2.JPG", "10.png", "a.webp"]
    assert batch_of(pictures)[0][0] == BatchItem(pictures / "2.JPG")


def test_masks_by_name_or_one_for_all(tmp_path: Path):
    pictures = folder(tmp_path, "in", "1.png", "2.png", "3.png", "4.png", "5.png")
    one = folder(tmp_path, "one", "any.png")
    assert {item.mask for item in batch_of(pictures, one)[0]} == {one / "any.png"}
    some = folder(tmp_path, "some", "1.jpg", "9.png")
    items, notes = batch_of(pictures, some)
    assert items == [BatchItem(pictures / "1.png", some / "1.jpg")]
    assert len(notes) == 1 and notes[0].startswith("2.png, 3.png, 4.png and 1 more: left out")


def test_folders_that_cannot_be_worked_through(tmp_path: Path):
    with pytest.raises(BatchError, match="cannot be read"):
        batch_of(tmp_path / "nowhere")
    with pytest.raises(BatchError, match="there are no pictures"):
        batch_of(folder(tmp_path, "empty", "x.txt"))


def test_results_have_the_pictures_names():
    facts = NamingFacts("p", "", 1, 2, 7.0, 64, 64, "Euler", "Automatic", "m", "h", batch_count=4, image_index=2)
    now = datetime(2026, 1, 1)
    assert expand(name_pattern(Path("in/cat [seed].png"), 1), facts, now) == "cat (seed)"
    assert expand(name_pattern(Path("cat.png"), 4), facts, now) == "cat-3"
