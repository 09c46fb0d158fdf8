import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modules.settings.schema import SettingError, Settings
from modules.settings.store import SettingsStore, SettingsStoreError
from tests.ending import ends
from tests.golden import REPOSITORY

GOOD = {"randn_source": "NV", "jpeg_quality": 95}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_no_file_is_no_problem(path: Path):
    store = SettingsStore(path)
    assert store.current == Settings() and store.problems == [] and not path.exists()


def test_updates_are_kept(path: Path):
    SettingsStore(path).update(GOOD)
    assert SettingsStore(path).current == Settings().with_overrides(GOOD)


def test_foreign_keys_and_permissions_survive(path: Path):
    path.write_text(json.dumps({"some_extension_option": {"a": [1]}, "jpeg_quality": 70}))
    path.chmod(0o640)
    store = SettingsStore(path)
    assert store.current.jpeg_quality == 70 and store.problems == []
    store.update({"jpeg_quality": 71})
    data = json.loads(path.read_text())
    assert data == {"some_extension_option": {"a": [1]}, "jpeg_quality": 71}
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["config.json"]


def test_a_refused_update_changes_nothing(path: Path):
    store = SettingsStore(path)
    store.update(GOOD)
    before = path.read_bytes()
    with pytest.raises(SettingError):
        store.update({"randn_source": "CPU", "jpeg_quality": 0})
    assert path.read_bytes() == before and store.current.randn_source == "NV"


def test_wrong_types_reset_only_themselves(path: Path):
    path.write_text(json.dumps({**GOOD, "samples_save": "yes", "n_rows": 99, "foreign": 1}))
    store = SettingsStore(path, clock=lambda: 0.0)
    assert store.current == Settings().with_overrides(GOOD)
    text = "\n".join(store.problems)
    assert "'samples_save'" in text and "'n_rows'" in text and "config.json.bad-" in text
    [bad] = path.parent.glob("config.json.bad-*")
    assert json.loads(bad.read_text())["samples_save"] == "yes"
    assert json.loads(path.read_text()) == {**GOOD, "foreign": 1}
    assert SettingsStore(path).problems == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\0" * 4096, "NUL"),
        (b"[1, 2]", "object"),
        (b"null", "object"),
        (b"not json", "damaged"),
        (b'{"jpeg_quality": 9', "damaged"),
        (b"\xff\xfe\xfa", "damaged"),
        (b"[" * 200_000, "nested"),
        (b'{"jpeg_quality": NaN}', "jpeg_quality"),
        (b'{"n_rows": ' + b"9" * 6000 + b"}", "damaged"),
    ],
)
def test_broken_files_are_kept_and_the_program_starts(path: Path, content: bytes, word: str):
    path.write_bytes(content)
    store = SettingsStore(path)
    assert store.current == Settings()
    assert word in "\n".join(store.problems)
    [bad] = path.parent.glob("config.json.bad-*")
    assert bad.read_bytes() == content
    store.update(GOOD)
    assert SettingsStore(path).current == Settings().with_overrides(GOOD)


def test_a_half_written_file_keeps_its_whole_settings(path: Path):
    whole = json.dumps({**GOOD, "grid_save": False, "samples_format": "webp"}, indent=4)
    path.write_text(whole[: whole.index('"webp"') + 3])
    store = SettingsStore(path)
    assert store.current == Settings().with_overrides({**GOOD, "grid_save": False})
    assert "damaged" in store.problems[0] and "is kept" in store.problems[0]


def test_every_cut_of_a_file_loads(path: Path):
    whole = json.dumps({"jpeg_quality": 12, "n_rows": 12, "samples_format": "webp"})
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        store = SettingsStore(path)
        assert store.current.jpeg_quality in (80, 12) and store.current.n_rows in (-1, 12), whole[:cut]
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_fine(path: Path, encoding: str):
    path.write_text(json.dumps(GOOD), encoding=encoding)
    store = SettingsStore(path)
    assert store.current == Settings().with_overrides(GOOD) and store.problems == []


def test_a_huge_file_and_a_folder_are_moved_away(path: Path):
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with ends():
        assert "larger" in SettingsStore(path).problems[0]
    assert not path.exists()
    path.mkdir()
    store = SettingsStore(path)
    assert "folder" in store.problems[0] and store.update(GOOD).jpeg_quality == 95


def test_what_cannot_be_written_is_said_and_nothing_changes(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = SettingsStore(blocked / "config.json")
    with pytest.raises(SettingsStoreError, match="could not be saved"):
        store.update(GOOD)
    assert store.current == Settings()


def test_many_threads_lose_nothing(path: Path):
    store = SettingsStore(path)
    keys = ["jpeg_quality", "notification_volume", "s_churn", "live_preview_refresh_period", "eta_noise_seed_delta"]
    threads = [threading.Thread(target=lambda k=key: [store.update({k: n}) for n in range(1, 21)]) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == {key: 20 for key in keys}
    assert SettingsStore(path).current == store.current


WRITER = """
import itertools, sys
from pathlib import Path
from modules.settings.store import SettingsStore
store = SettingsStore(Path(sys.argv[1]))
print("ready", flush=True)
for n in itertools.count():
    store.update({"eta_noise_seed_delta": n, "samples_filename_pattern": str(n) * 20_000})
"""


def test_kill_in_the_middle_of_saving_never_tears_the_file(path: Path):
    dice = random.Random(7)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            assert writer.stdout.readline() == "ready\n"
            while not path.exists():  # a disk may take its time
                time.sleep(0.005)
            time.sleep(dice.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
        store = SettingsStore(path)
        assert store.problems == []
        assert store.current.samples_filename_pattern == str(store.current.eta_noise_seed_delta) * 20_000
