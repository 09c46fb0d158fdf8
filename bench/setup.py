"""How long set-up takes on a bare machine, and how much it fetches. `python bench/setup.py`

Clones the committed state into an empty folder, runs `launch.py install` there without pip's cache, then weighs the
packages that it installed. The network is part of the figure: say which one it was.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    python = getattr(sys, "_base_executable", sys.executable)  # a bare machine has no venv yet
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {"PIP_NO_CACHE_DIR": "1"}
    with tempfile.TemporaryDirectory(prefix="easel-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        began = time.perf_counter()
        subprocess.run([python, "launch.py", "install"], cwd=clone, env=environ, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        again = time.perf_counter()
        subprocess.run([python, "launch.py", "install"], cwd=clone, env=environ, check=True, stdout=subprocess.DEVNULL)
        second = time.perf_counter() - again
        count, fetched = weigh(clone, Path(folder) / "packages", environ)
        print(f"set-up         {seconds:8.1f} s")
        print(f"second time    {second:8.2f} s")
        print(f"packages       {count:8d}")
        print(f"fetched        {fetched / 1e6:8.1f} MB")
        print(f"installed      {size(clone / 'venv') / 1e6:8.1f} MB")


def weigh(clone: Path, folder: Path, environ: dict[str, str]) -> tuple[int, int]:
    """(number, bytes) of the files that pip fetches for this machine."""
    python = clone / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [
        python,
        "-m",
        "pip",
        "download",
        "--quiet",
        "-r",
        "requirements.txt",
        "-c",
        "constraints.txt",
        "-d",
        folder,
    ]
    subprocess.run(command, cwd=clone, env=environ, check=True, stderr=subprocess.DEVNULL)
    return len(list(folder.iterdir())), size(folder)


def size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*"))


if __name__ == "__main__":
    main()
