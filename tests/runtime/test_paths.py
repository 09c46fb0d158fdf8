import os

import pytest

from modules.runtime.flags import parse
from modules.runtime.paths import PathError, absolute, paths_from


def paths(tmp_path, *argv):
    return paths_from(parse(argv), tmp_path / "program")


def test_all_lies_in_the_program_unless_told_otherwise(tmp_path):
    found = paths(tmp_path)
    root = tmp_path / "program"
    assert (found.root, found.data_dir, found.models_dir) == (root, root, root / "models")
    assert found.database == root / "data" / "easel.db" and found.database.parent.is_dir()
    assert found.config == root / "config.json"


def test_the_data_folder_is_made_and_holds_models_too(tmp_path):
    found = paths(tmp_path, "--data-dir", str(tmp_path / "new" / "ümlaut and space"))
    assert found.data_dir.is_dir() and found.cache.is_dir()
    assert found.models_dir == found.data_dir / "models"
    assert found.root == tmp_path / "program"


def test_paths_count_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    found = paths(tmp_path, "--data-dir", "here/../there", "--models-dir", "~/weights")
    assert found.data_dir == tmp_path / "there"
    assert found.models_dir == tmp_path / "home" / "weights" and found.models_dir.is_dir()
    assert absolute("x") == tmp_path / "x"


def test_a_settings_file_of_ones_own(tmp_path):
    assert paths(tmp_path, "--ui-settings-file", str(tmp_path / "my" / "s.json")).config == tmp_path / "my" / "s.json"
    with pytest.raises(PathError, match="is a folder; name a file"):
        paths(tmp_path, "--ui-settings-file", str(tmp_path))


def test_a_folder_in_the_place_of_config_json_does_not_stop_the_start(tmp_path):
    (tmp_path / "program" / "config.json").mkdir(parents=True)
    assert paths(tmp_path).config.is_dir()  # the settings' store reports it


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for flag in ("--data-dir", "--models-dir"):
        with pytest.raises(PathError, match=f"{flag}: .* is a file; name a folder"):
            paths(tmp_path, flag, str(file))
        with pytest.raises(PathError, match="a part of .* is a file"):
            paths(tmp_path, flag, str(file / "below"))


def test_what_has_to_be_there_already(tmp_path):
    with pytest.raises(PathError, match="--ckpt-dir: there is no folder"):
        paths(tmp_path, "--ckpt-dir", str(tmp_path / "nowhere"))
    with pytest.raises(PathError, match="--ckpt: there is no file"):
        paths(tmp_path, "--ckpt", str(tmp_path / "nothing.safetensors"))


def test_key_and_certificate_come_together(tmp_path):
    (tmp_path / "key.pem").touch()
    key = ["--tls-keyfile", str(tmp_path / "key.pem")]
    with pytest.raises(PathError, match="belong together"):
        paths(tmp_path, *key)
    with pytest.raises(PathError, match="--tls-certfile: there is no file"):
        paths(tmp_path, *key, "--tls-certfile", str(tmp_path / "absent.pem"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    with pytest.raises(PathError, match="--data-dir: "):
        paths(tmp_path, "--data-dir", str(locked))
