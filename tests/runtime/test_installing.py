"""Set-up with the real pip, on packages of one line that lie in a folder. No network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from modules.runtime import installing
from modules.runtime.installing import Environment, SetupError, environment_for, install, run_pip

FILES = ("requirements.txt",)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in [("easel_probe", "1.0"), ("easel_probe", "2.0"), ("easel_other", "1.0"), ("torch", "2.13.0")]:
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f"version = {version!r}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(autouse=True)
def only_local_packages(monkeypatch, wheels):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheels.as_uri())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A venv with pip, made once and copied by those who need one."""
    folder = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def root(tmp_path, made) -> Path:
    root = tmp_path / "ein Ordner mit Ümlaut"
    root.mkdir()
    (root / "requirements.txt").write_text('easel_probe==1.0\nabsent==1 ; python_version < "3.8"\n')
    (root / "constraints.txt").write_text("# none\n")
    shutil.copytree(made, root / "venv", symlinks=True)
    return root


def ours(root: Path) -> Environment:
    return Environment(root / "venv" / "bin" / "python", root / "venv")


def stamp(root: Path) -> dict[str, str]:
    return json.loads((root / "venv" / installing.STAMP).read_text())


def probe(root: Path) -> str:
    code = "import easel_probe; print(easel_probe.version)"
    return subprocess.run([ours(root).python, "-c", code], capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_it_installs_once_and_again_when_the_file_changes(root, monkeypatch):
    said: list[str] = []
    install(root, ours(root), FILES, said.append)
    assert probe(root) == "1.0" and said[-1] == "Set-up is complete."
    assert stamp(root)["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"

    said.clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)  # the second start starts no process at all
        install(root, ours(root), FILES, said.append)
    assert said == []

    (root / "requirements.txt").write_text("easel_probe==2.0\n")
    install(root, ours(root), FILES, said.append)
    assert probe(root) == "2.0"

    (root / "constraints.txt").write_text("easel_probe==1.0\n")  # now they contradict each other
    with pytest.raises(SetupError):
        install(root, ours(root), FILES, said.append)
    assert not (root / "venv" / installing.STAMP).exists()  # what did not end well is begun again


@pytest.mark.slow
def test_an_interrupted_set_up_does_not_count(root, monkeypatch):
    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None and self.poll() is None:
                raise KeyboardInterrupt
            return super().wait(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Interrupted)
        patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        with pytest.raises(KeyboardInterrupt):
            install(root, ours(root), FILES, lambda _: None)
    assert not (root / "venv" / installing.STAMP).exists()
    install(root, ours(root), FILES, lambda _: None)
    assert probe(root) == "1.0" and stamp(root)


@pytest.mark.slow
def test_a_venv_that_was_half_made_is_made_again(root):
    (root / "venv" / "bin" / "python").unlink()
    said: list[str] = []
    install(root, ours(root), FILES, said.append)
    assert probe(root) == "1.0" and any(line.startswith("Making a Python environment") for line in said)


def installs_pip(child: psutil.Process) -> bool:
    try:
        return "ensurepip" in " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_ctrl_c_while_the_venv_is_made_leaves_no_process(root):
    shutil.rmtree(root / "venv")
    code = f"""
import sys, pathlib; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from modules.runtime import installing
root = pathlib.Path({str(root)!r})
environment = installing.Environment(root / "venv" / "bin" / "python", root / "venv")
installing.install(root, environment, {FILES!r}, print)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    me = psutil.Process(process.pid)
    while not any(map(installs_pip, me.children(recursive=True))):
        time.sleep(0.02)
        assert process.poll() is None
    children = me.children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    _, alive = psutil.wait_procs(children, 60)
    assert len(children) > 1 and not alive
    assert not (root / "venv" / installing.STAMP).exists()


def test_no_internet_is_said_in_a_sentence(root, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SetupError, match="^The packages cannot be fetched: this machine seems to be offline"):
        install(root, ours(root), FILES, lambda _: None)
    assert not (root / "venv" / installing.STAMP).exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "The disk is full (",
        ),
        ("error: externally-managed-environment", "This Python belongs to the system"),
        ("OSError: [Errno 13] Permission denied: '/x'", "Set-up may not write there"),
        (
            "(from versions: 2.14.0)\nERROR: No matching distribution found for torch==2.13.0",
            "A pinned package is not offered",
        ),
        (
            "Temporary failure in name resolution'))\nERROR: No matching distribution found for x",
            "The packages cannot be",
        ),
        ("something nobody foresaw", ""),
    ],
)
def test_what_pips_complaints_mean(words, sentence):
    found = installing._explain(words)
    assert found.startswith(sentence) and bool(found) == bool(sentence)


def test_which_python_runs_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    venv = environment_for(tmp_path, False, {})
    assert venv.ours == tmp_path / "venv" and venv.python.parent.parent == tmp_path / "venv"
    assert environment_for(tmp_path, True, {}) == Environment(Path(sys.executable), None, "--no-venv")
    assert environment_for(tmp_path, False, {"COLAB_RELEASE_TAG": "1"}).reason == "Colab"
    assert environment_for(tmp_path, False, {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}).reason == "Kaggle"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert environment_for(tmp_path, False, {}).ours is None  # an active venv of someone else
    (tmp_path / "venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert environment_for(tmp_path, False, {}).ours == tmp_path / "venv"


@pytest.mark.parametrize(("torch", "kept"), [("2.10.0", True), ("2.14.1+cu130", True), ("2.9.1", False), (None, False)])
def test_a_torch_that_is_new_enough_stays_in_a_foreign_environment(root, monkeypatch, torch, kept):
    (root / "requirements.txt").write_text("torch==2.13.0\npytest==0.0.1\n")
    asked: list[list[str]] = []
    monkeypatch.setattr(installing, "_version", lambda name: torch if name == "torch" else None)
    monkeypatch.setattr(installing, "_pip", lambda environment, arguments, say: asked.append(list(arguments)))
    install(root, Environment(Path(sys.executable), None, "Colab"), FILES, lambda _: None)
    expected = ["pytest==0.0.1", f"torch=={torch}"] if kept else ["torch==2.13.0", "pytest==0.0.1"]
    assert asked == [["install", *expected]]


def test_a_foreign_environment_that_has_everything_is_left_alone(root, monkeypatch):
    (root / "requirements.txt").write_text(f"pytest=={pytest.__version__}\n")
    monkeypatch.setattr(installing, "_pip", None)
    install(root, Environment(Path(sys.executable), None, "Colab"), FILES, lambda _: None)


@pytest.mark.slow
def test_an_extension_may_add_but_not_change(root, monkeypatch):
    install(root, ours(root), FILES, lambda _: None)
    monkeypatch.setattr(installing, "_version", lambda name: "1.0" if name == "easel_probe" else None)
    run_pip(root, ours(root), "install easel_other", "easel_other for an extension", lambda _: None)
    with pytest.raises(SetupError, match="easel.probe"):
        run_pip(root, ours(root), "install easel_probe==2.0", "an old habit", lambda _: None)
    assert probe(root) == "1.0"


def test_the_projects_own_files_are_understood():
    here = Path(__file__).resolve().parents[2]
    lines = installing.requirement_lines(here, "requirements.txt")
    assert any(line.startswith("torch==") for line in lines) and any(line.startswith("gradio==") for line in lines)
    names = [installing._name(line) for line in [*lines, *installing.requirement_lines(here, "constraints.txt")]]
    assert len(names) == len(set(names)) and all(names), "a package is pinned twice for this Python"
