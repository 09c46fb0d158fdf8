"""Which names match a pattern that somebody typed. A regular expression can keep a processor busy for years, so this
file is also run as a process of its own, which is ended when its time is over. Standard library only."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

MOST_CHARACTERS = 1000  # of a pattern
CPU_S = 2  # that matching may take
PATIENCE_S = 20.0  # by the clock: a busy machine is no bad pattern
MEMORY = 512 * 2**20  # bytes


class PatternError(ValueError):
    """The pattern cannot be used; the message is a sentence."""


def matching(pattern: str, names: Sequence[str]) -> frozenset[str]:
    """The names in which the regular expression is found anywhere. Raises PatternError."""
    if len(pattern) > MOST_CHARACTERS:
        raise PatternError(f"the pattern has {len(pattern)} characters; at most {MOST_CHARACTERS} are allowed")
    request = json.dumps({"pattern": pattern, "names": list(names)})
    command = [sys.executable, "-I", "-S", __file__]
    slow = f"the pattern takes too long (more than {CPU_S} s for {len(names)} names); use a simpler one"
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise PatternError(slow) from None
    if done.returncode < 0:  # ended by its limit
        raise PatternError(slow)
    if done.returncode:
        raise RuntimeError(f"the process that matches patterns failed: {done.stderr[-500:].decode('utf-8', 'replace')}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise PatternError(answer["error"])
    return frozenset(answer["found"])


def _main() -> None:
    """The other half, in the process of its own."""
    warnings.simplefilter("ignore")
    _limit()
    request = json.loads(sys.stdin.buffer.read())
    answer: dict[str, Any]
    try:
        compiled = re.compile(request["pattern"])
        answer = {"found": [name for name in request["names"] if compiled.search(name)]}
    except re.error as error:
        answer = {"error": f"the pattern is no regular expression: {error}"}
    except (MemoryError, RecursionError, OverflowError):
        answer = {"error": "the pattern needs too much memory; use a simpler one"}
    sys.stdout.write(json.dumps(answer))


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the clock alone
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    if sys.platform != "darwin":  # which refuses it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    _main()
