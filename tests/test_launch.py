"""launch.py as a user meets it: a process with an exit code, some lines, and a server under it.

The server is a stand-in (tests/standin/server.py) but in the last test, which starts the real one.
"""

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

import launch as launch_module
from tests.tiny import HEADS, SIZES

ROOT = Path(__file__).resolve().parents[1]
STANDIN = ROOT / "tests" / "standin" / "server.py"
PLAIN = ["--no-venv", "--skip-install", "--no-browser"]
# launch.py with another program under it; the stand-in's own arguments travel in its path's place.
PATIENCE_S = 90  # only ever reached by a test that fails
DRIVER = """
import sys, pathlib, launch
from modules.runtime import supervising
program, how, folder, *argv = sys.argv[1:]
start, supervise = launch.start, supervising.supervise
launch.start = lambda flags, typed: start(flags, [how, folder], pathlib.Path(program))
launch.command_line.notes = lambda typed: []
sys.exit(launch.main(argv))
"""


class Launched:
    def __init__(self, process: subprocess.Popen[str], folder: Path):
        self.process, self.folder = process, folder
        self.said = ""

    def address(self) -> str:
        return self.until(r"Easel is ready: (\S+)")

    def until(self, pattern: str) -> str:
        assert self.process.stdout is not None
        while not (found := re.search(pattern, self.said)):
            line = self.process.stdout.readline()
            assert line, f"launch.py ended without saying {pattern!r}:\n{self.said}"
            self.said += line
        return found[found.re.groups]

    def end(self, number: int = signal.SIGINT) -> int:
        """The exit code. It comes far sooner than after the time that a server is asleep which will not end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        self.said += rest
        return self.process.returncode

    def left_behind(self, kind: str = "start") -> list[int]:
        """The process ids of the server's starts, or of its child."""
        return [int(file.name.rpartition("-")[2]) for file in sorted(self.folder.glob(f"{kind}-*"))]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    begun: list[Launched] = []

    def start(how: str, *flags: str) -> Launched:
        folder = tmp_path / f"{how}-{len(begun)}"
        folder.mkdir()
        command = [sys.executable, "-c", DRIVER, str(STANDIN), how, str(folder)]
        command += [*PLAIN, "--data-dir", str(tmp_path / "dätä dir"), *flags]
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean(), umask=0o077
        )
        begun.append(Launched(process, folder))
        return begun[-1]

    yield start
    for launched in begun:
        for pid in [launched.process.pid, *launched.left_behind(), *launched.left_behind("child")]:
            if psutil.pid_exists(pid) and launched.process.poll() is None:
                psutil.Process(pid).kill()
        launched.process.wait()
        if launched.process.stdout:
            launched.process.stdout.close()


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("COMMANDLINE_ARGS", "EASEL_TOKEN")}


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def is_gone(pid: int) -> bool:
    """At once, or as soon as whoever inherited it has read its exit code."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def port_is_free(address: str) -> bool:
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        probe.listen()
    return True


# -- starting and ending -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_it_says_one_address_when_the_page_answers_and_ends_when_asked(launch, number, code):
    started = launch("slow")
    address = started.address()
    assert fetch(address) == "start 0"
    assert started.end(number) == code
    assert all(map(is_gone, started.left_behind())) and port_is_free(address)
    assert len(re.findall("http://", started.said)) == 1


def test_ctrl_c_before_the_server_answers(launch):
    started = launch("slow")
    while not started.left_behind():
        time.sleep(0.02)
    assert started.end() == 130
    assert all(map(is_gone, started.left_behind())) and "ready" not in started.said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_server_that_will_not_end_is_ended_with_its_children(launch, number, code):
    started = launch("will-not-end")
    address = started.address()
    assert started.end(number) == code
    assert len(started.left_behind("child")) == 1
    assert all(map(is_gone, [*started.left_behind(), *started.left_behind("child")])) and port_is_free(address)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent was killed")
def test_no_server_outlives_a_killed_launch(launch):
    started = launch("will-not-end")
    started.address()
    started.process.kill()
    assert all(map(is_gone, started.left_behind()))
    for pid in started.left_behind("child"):
        psutil.Process(pid).kill()


def test_a_server_that_ends_by_itself_ends_all(launch):
    assert launch("ends").wait() == 0


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_a_crash_starts_the_server_again_on_the_same_port(launch):
    started = launch("serves")
    address = started.address()
    assert fetch(address + "crash") == "start 0"
    # Asked while nothing runs: the open port makes us wait, it does not turn us away.
    assert fetch(address) == "start 1"
    assert started.end() == 130
    assert "crashed (exit code 3). It starts again in 1 s" in started.said
    assert started.said.count("Easel is ready") == 1


def test_a_crash_at_the_first_start_is_no_end(launch):
    started = launch("crashes-once")
    assert fetch(started.address()) == "start 1"
    assert "crashed (SIGSEGV)" in started.said


def test_after_the_third_crash_within_a_minute_it_stops_and_says_so(launch):
    started = launch("crashes")
    began = time.monotonic()
    assert started.wait() == 1
    assert time.monotonic() - began > 2.9  # 1 s and 2 s: it backs off
    assert len(started.left_behind()) == 3
    last = started.said.strip().splitlines()[-1]
    assert last.startswith("The server crashed (SIGSEGV), for the third time within a minute. Easel stops here")


def test_a_server_that_refuses_its_command_line_is_not_started_again(launch):
    started = launch("refuses")
    assert started.wait() == 2 and len(started.left_behind()) == 1


# -- what cannot be obeyed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--medvarm"], "there is no flag --medvarm; did you mean --medvram?"),
        (["--port", "80"], "ports below 1024"),
        (["--server-name", "192.0.2.77"], "192.0.2.77' is no address of this machine|192.0.2.77 is no address"),
        (["--data-dir", __file__], "is a file; name a folder"),
        (["--ckpt-dir", "/nowhere/at/all"], "there is no folder /nowhere/at/all"),
        (["--gradio-auth", "nobody"], "--gradio-auth: it needs user:password"),
        (["instal"], "'instal' belongs to no flag"),
    ],
)
def test_one_line_and_exit_code_2(flags, words):
    done = subprocess.run(
        [sys.executable, "launch.py", *PLAIN, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=clean(),
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("easel: ") and re.search(words, line)
    assert not done.stderr


def test_a_port_that_is_taken(launch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = launch("serves", "--port", str(port))
        assert refused.wait() == 2
        assert (
            refused.said
            == f"easel: port {port} on 127.0.0.1 is taken by another program; name another with --port, or none\n"
        )
        assert not refused.left_behind()
    first, second = launch("serves"), launch("serves")
    addresses = {first.address(), second.address()}
    assert len(addresses) == 2 and all(fetch(address) == "start 0" for address in addresses)


@pytest.mark.parametrize(
    ("version", "starts"), [((3, 9, 18), False), ((3, 14, 0), False), ((3, 10, 0), True), ((3, 13, 9), True)]
)
def test_a_python_that_is_too_old_or_too_new(version, starts):
    code = (
        f"import sys, runpy; sys.version_info = {version}; sys.argv = ['launch.py', '--port', '1']; "
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if starts:
        assert done.returncode == 2 and "ports below 1024" in done.stdout
    else:
        assert done.returncode == 1
        assert f"Easel needs Python 3.10 to 3.13, and this is {version[0]}.{version[1]} (" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_help_needs_nothing_installed():
    done = subprocess.run(
        [sys.executable, "-S", "-E", "launch.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "--medvram" in done.stdout


# -- the bench ---------------------------------------------------------------------------------------------------------


def test_the_bench_gets_its_options_and_the_users_flags(tmp_path, monkeypatch):
    program, told = tmp_path / "program.py", tmp_path / "told"
    program.write_text(
        f"import os, sys; open({str(told)!r}, 'w').write(repr((sys.argv[1:], dict(os.environ)))); sys.exit(7)"
    )
    monkeypatch.setattr(launch_module, "bench", partial(launch_module.bench, program=program))
    monkeypatch.setenv("COMMANDLINE_ARGS", "--no-half --use-cpu all")
    assert launch_module.main(["bench", "--no-venv", "--skip-install", "--quick", "--steps", "3"]) == 7
    words, environ = ast.literal_eval(told.read_text())
    assert words == ["--no-half", "--use-cpu", "all", "--no-venv", "--skip-install", "--quick", "--steps", "3"]
    assert "COMMANDLINE_ARGS" not in environ and environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--medvarm"], "bench: there is no flag --medvarm; did you mean --medvram?"),
        (["--cases", "sd9"], "there is no 'sd9'; there are sd15-512-b1"),
        (["--port", "80"], "ports below 1024"),
    ],
)
def test_a_bench_that_cannot_be_run(words, said):
    command = [sys.executable, "launch.py", "bench", "--no-venv", "--skip-install", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=clean(), timeout=120)
    assert done.returncode == 2 and said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_benchs_help_names_its_options():
    command = [sys.executable, "launch.py", "bench", "--no-venv", "--skip-install", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=clean(), timeout=120)
    assert done.returncode == 0 and "--quick" in done.stdout and "--medvram" in done.stdout


@pytest.mark.slow
def test_a_bench_of_this_machine(tmp_path):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"sd1": {"parts": SIZES["sd1"], "metadata": HEADS}}))
    command = [sys.executable, "launch.py", "bench", "--no-venv", "--skip-install", "--use-cpu", "all", "--quick"]
    command += ["--cases", "sd15-512-b1", "--engines", "easel", "--sizes", str(sizes), "--side", "64"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=clean(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "SD 1.5, 64 x 64, batch 1" in done.stdout and re.search(r"seconds a step +0\.\d+", done.stdout)
    assert str(tmp_path) not in done.stdout and list(tmp_path.iterdir()) == [sizes]


# -- the system information --------------------------------------------------------------------------------------------


def test_the_system_information_is_written_and_nothing_is_served(tmp_path):
    command = [sys.executable, "launch.py", *PLAIN, "--dump-sysinfo", "--use-cpu", "all", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=clean(), timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("sysinfo-*.json")
    assert str(file) in done.stdout and "http" not in done.stdout
    report = json.loads(file.read_text("utf-8"))
    assert report["device"]["device"] == "cpu" and "--dump-sysinfo" in report["flags"]
    assert str(tmp_path) not in file.read_text("utf-8")
    assert not (tmp_path / "data" / "easel.db").exists()


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_the_environment_of_the_server():
    environ = launch_module.child_environment({"HF_HUB_OFFLINE": "0", "COMMANDLINE_ARGS": "--api", "PYTHONUTF8": "0"})
    assert environ["GRADIO_ANALYTICS_ENABLED"] == "False" and environ["DO_NOT_TRACK"] == "1"
    assert environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environ["HF_HUB_OFFLINE"] == "0"  # the user's word
    assert "COMMANDLINE_ARGS" not in environ and environ["PYTHONUTF8"] == "1"
    assert launch_module.child_environment({})["HF_HUB_OFFLINE"] == "1"


def test_a_browser_is_opened_only_where_someone_sees_it(monkeypatch):
    assert launch_module.has_screen({"DISPLAY": ":0"}) or sys.platform == "darwin"
    assert not launch_module.has_screen({"DISPLAY": ":0", "SSH_CONNECTION": "x"})
    assert not launch_module.has_screen({"DISPLAY": ":0", "COLAB_RELEASE_TAG": "x"})
    monkeypatch.setattr(sys, "platform", "linux")
    assert not launch_module.has_screen({})


def test_the_link_of_an_open_server_has_its_token(capsys, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(launch_module.webbrowser, "open", opened.append)
    flags = launch_module.command_line.parse(["--listen", "--autolaunch"])
    launch_module.announce("http://127.0.0.1:7860", "t0ken", flags)
    said = capsys.readouterr().out
    assert "Easel is ready: http://127.0.0.1:7860/?token=t0ken" in said and "Whoever has this link" in said
    assert opened == ["http://127.0.0.1:7860/?token=t0ken"]
    launch_module.announce("http://127.0.0.1:7860", None, launch_module.command_line.parse(["--no-browser"]))
    assert len(opened) == 1


def test_all_tests_are_shared_by_the_cores_and_chosen_ones_are_not():
    assert [launch_module.test_workers((), cores) for cores in (1, 2, 16)] == [1, 2, 4]
    assert launch_module.test_workers(("-k", "queue"), 16) == 1


def test_extensions_find_what_they_ask_launch_for():
    assert launch_module.is_installed("pytest") and launch_module.is_installed("PIL")
    assert not launch_module.is_installed("easel-no-such-package")
    assert Path(launch_module.python).exists()


@pytest.mark.slow
def test_the_real_server_answers_and_ends(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "launch.py",
            *PLAIN,
            "--port",
            "0",
            "--data-dir",
            str(tmp_path / "dätä dir"),
            "--use-cpu",
            "all",
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean(),
        umask=0o077,
    )
    launched = Launched(process, tmp_path)
    address = launched.address()
    assert "gradio" in fetch(address)
    assert '"status":"ok"' in fetch(address + "health")
    children = psutil.Process(process.pid).children(recursive=True)
    assert launched.end(signal.SIGTERM) == 0  # most likely in the middle of importing torch
    assert children and all(is_gone(child.pid) for child in children) and port_is_free(address)
    assert "Traceback" not in launched.said
