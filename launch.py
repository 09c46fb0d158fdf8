"""Starts Easel: `python launch.py`. Makes venv/, installs requirements.txt, runs webui.py and keeps it alive.

`python launch.py install` only installs, `python launch.py test [pytest arguments]` runs the tests, `python launch.py
bench [options]` times this machine. Standard library only. Extensions import this file as well, for `is_installed` and
`run_pip`.
"""

import sys

OLDEST, NEWEST = (3, 10), (3, 13)

if sys.version_info < OLDEST or (sys.version_info[:2] > NEWEST and "--skip-python-version-check" not in sys.argv):
    # These lines have to be understood by any Python 3, which is why they look old.
    sys.exit(
        "Easel needs Python {}.{} to {}.{}, and this is {}.{} ({}). Start it with another one, for example: "
        "python3.11 launch.py".format(*OLDEST, *NEWEST, *sys.version_info[:2], sys.executable)
    )

import os
import socket
import subprocess
import webbrowser
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from modules.runtime import flags as command_line
from modules.runtime import installing, listening, supervising
from modules.runtime.paths import PathError, paths_from
from modules.runtime.surroundings import surroundings

COMMANDS = ("install", "test", "bench")
INTERRUPTED, FAILED, BAD_COMMAND_LINE = 130, 1, 2
MOST_TEST_WORKERS = 4  # each has a server, a browser and a gigabyte of libraries


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 ended as asked, 130 by Ctrl-C, 2 a command line that cannot be obeyed, 1 the rest."""
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("start", argv)
    try:
        with supervising.signals_as_exceptions():
            if command == "test":
                return test(rest)
            typed = command_line.words(rest, os.environ)
            if command == "bench":
                return bench(typed)
            flags = command_line.parse(typed)
            if command == "install":
                return install(flags)
            if flags.dump_sysinfo:
                return dump_system_info(flags, typed)
            return start(flags, typed)
    except (command_line.FlagError, PathError, listening.ListenError) as error:
        say(f"easel: {error}")
        return BAD_COMMAND_LINE
    except installing.SetupError as error:
        say(f"easel: {error}")
        return FAILED
    except KeyboardInterrupt:
        say("Stopped.")
        return INTERRUPTED
    except supervising.Terminated:
        return 0


def start(flags: Namespace, typed: Sequence[str], program: Path = ROOT / "webui.py") -> int:
    """Set-up, then the server and its keeper. The port is opened first: a taken one is told before any download."""
    paths_from(flags)
    listening.passwords_from(flags)
    listener = listening.open_listener(flags)
    with listener:
        for note in command_line.notes(typed):
            say(note)
        environment = install_if_needed(flags)
        address = listening.address_of(listener, flags)
        environ = child_environment(os.environ)
        token = listening.token_from(flags, os.environ)
        if token:
            environ[listening.TOKEN_VARIABLE] = token
        command = [str(environment.python), str(program), *typed]
        handed_down: socket.socket | None = listener
        if sys.platform == "win32":  # a socket cannot be inherited there: the server opens this port itself
            command += ["--port", str(listener.getsockname()[1])]
            listener.close()
            handed_down = None
        server = supervising.Server(command, environ, address, handed_down, flags.tls_certfile)
        return supervising.supervise(server, lambda: announce(address, token, flags), say)


def install(flags: Namespace) -> int:
    environment = install_if_needed(flags)
    say(f"Ready: {environment.python}")
    return 0


def dump_system_info(flags: Namespace, typed: Sequence[str]) -> int:
    environment = install_if_needed(flags)
    return ended([str(environment.python), str(ROOT / "webui.py"), *typed], child_environment(os.environ))


def test(arguments: Sequence[str]) -> int:
    """Runs pytest in the program's folder; the exit code is pytest's."""
    environment = installing.environment_for(ROOT, False, os.environ)
    files = (installing.REQUIREMENTS, installing.DEV_REQUIREMENTS)
    installing.install(ROOT, environment, files, say)
    workers = test_workers(arguments, os.cpu_count() or 1)
    environ = child_environment(os.environ)
    if workers > 1:  # each of them computes on its own core
        environ.setdefault("OMP_NUM_THREADS", "1")
        arguments = ["-n", str(workers), *arguments]
    return ended([str(environment.python), "-m", "pytest", *arguments], environ)


def test_workers(arguments: Sequence[str], cores: int) -> int:
    """How many processes share the tests: one, where the user chose some tests, or says how they are to run."""
    return 1 if arguments else min(cores, MOST_TEST_WORKERS)


def bench(words: Sequence[str], program: Path = ROOT / "bench" / "engine.py") -> int:
    """Times Easel and diffusers on this machine. `words`: options of the bench, and flags of Easel among them."""
    environment = install_if_needed(command_line.parse_among(words))
    return ended([str(environment.python), str(program), *words], child_environment(os.environ))


def ended(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs a program in the program's folder, until its end or ours; the exit code is its own."""
    process = subprocess.Popen(command, cwd=ROOT, env=environ)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def install_if_needed(flags: Namespace) -> installing.Environment:
    environment = installing.environment_for(ROOT, flags.no_venv, os.environ)
    if not (flags.skip_install or flags.skip_prepare_environment):
        torch = [line for line in installing.requirement_lines(ROOT, installing.REQUIREMENTS) if line[:5] == "torch"]
        again = torch if flags.reinstall_torch else []
        installing.install(ROOT, environment, (installing.REQUIREMENTS,), say, again)
    elif not environment.python.exists():
        raise installing.SetupError(f"there is no {environment.python}: start once without --skip-install")
    return environment


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the server runs under. COMMANDLINE_ARGS is left out: its words travel as arguments already."""
    return surroundings({name: value for name, value in environ.items() if name != "COMMANDLINE_ARGS"})


def announce(address: str, token: str | None, flags: Namespace) -> None:
    """One clear address, and the browser on it where there is a screen."""
    link = listening.with_token(address, token)
    say(f"\nEasel is ready: {link}")
    host = command_line.host_of(flags)
    here = listening.network_address() if host == "0.0.0.0" else None
    if here:
        say(f"From other machines: {link.replace('//127.0.0.1:', f'//{here}:')}")
    if token:
        say("Whoever has this link can use Easel; it changes with every start.")
    say("")
    if not flags.no_browser and (flags.autolaunch or has_screen(os.environ)):
        webbrowser.open(link)


def has_screen(environ: Mapping[str, str]) -> bool:
    """Whether a browser opened here would be seen by someone."""
    away = ("SSH_CONNECTION", "CI", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
    if any(name in environ for name in away):
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return "DISPLAY" in environ or "WAYLAND_DISPLAY" in environ


def say(sentence: str) -> None:
    sys.stdout.write(sentence + "\n")  # in one piece: the server writes to the same screen
    sys.stdout.flush()


# -- for extensions ----------------------------------------------------------------------------------------------------

python = sys.executable


def is_installed(package: str) -> bool:
    """Whether this package can be used, by the name that pip or `import` knows it by."""
    return installing.is_installed(package)


def run_pip(command: str, desc: str | None = None, live: bool = False) -> None:
    """`run_pip("install pandas", "what it is for")` into the running environment. It may add packages, never change one
    that Easel stands on; `live` is accepted and means nothing: progress is always shown."""
    environment = installing.Environment(Path(sys.executable), None, "the running environment")
    installing.run_pip(ROOT, environment, command, desc or command, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
