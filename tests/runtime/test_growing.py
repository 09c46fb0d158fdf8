"""Large files that are written piece by piece: whole under their name, or nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.runtime.files import growing, remove_left_behind

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from modules.runtime.files import growing
with growing(Path(sys.argv[1]), overwrite=False) as file:
    file.write(b"half of it")
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def test_it_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    with growing(tmp_path / "x", overwrite=False) as file:
        file.write(b"whole")
        assert not (tmp_path / "x").exists()
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"whole"


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), growing(tmp_path / "x", overwrite=False) as file:
        file.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_replaced_only_when_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), growing(path, overwrite=False):
        raise AssertionError("it began")
    with growing(path, overwrite=True) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["x"] and path.read_bytes() == b"new"


def test_a_file_that_came_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"

    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("this file system has none")

    for number in range(2):
        with pytest.raises(FileExistsError), growing(path, overwrite=False):
            path.write_bytes(b"theirs")
        assert os.listdir(tmp_path) == ["x"] and path.read_bytes() == b"theirs", number
        path.unlink()
        monkeypatch.setattr(os, "link", no_links)
    with growing(path, overwrite=False) as file:
        file.write(b"ours")
    assert os.listdir(tmp_path) == ["x"] and path.read_bytes() == b"ours"


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    writer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin and writer.stdout and writer.stdout.readline() == b"written\n"
    (tmp_path / "their.part").touch()
    assert remove_left_behind(tmp_path) == []
    writer.kill()
    writer.communicate()
    assert [path.name for path in remove_left_behind(tmp_path)] != []
    assert os.listdir(tmp_path) == ["their.part"]
    assert remove_left_behind(tmp_path / "nothing") == []
