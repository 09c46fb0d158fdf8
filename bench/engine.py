"""Easel against diffusers' own pipelines, the same work: how long a step takes, a picture, loading; how much memory.
`python launch.py bench [--quick] [--cases …] [--steps 20] [--rounds 2] [--json FILE] [flags of Easel]`

Random weights of true sizes, written here as an ordinary checkpoint and deleted afterwards. Each run is a process of
its own, the engines taking turns, since machines are noisy. What is too large or too slow for this machine is left out,
and said. The work is done by contenders.py, which alone imports torch.
"""

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import numpy

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.runtime import flags as command_line  # noqa: E402
from modules.runtime.machine import this_machine, versions  # noqa: E402
from modules.runtime.surroundings import surroundings  # noqa: E402

Kind = Literal["sd1", "sdxl"]
GB = 1e9


@dataclass(frozen=True)
class Checkpoint:
    kind: Kind
    name: str  # for people
    parameters: float  # of all parts
    work: float  # bytes that one picture's activations take in fp32, about


@dataclass(frozen=True)
class Case:
    name: str
    checkpoint: Checkpoint
    size: int  # pixels, both sides
    batch: int

    def __str__(self) -> str:
        return f"{self.checkpoint.name}, {self.size} x {self.size}, batch {self.batch}"

    @classmethod
    def named(cls, name: str, side: int | None = None) -> "Case":
        """`side`: another size than the name's, for tests."""
        case = next(case for case in CASES if case.name == name)
        return cls(case.name, case.checkpoint, side or case.size, case.batch)


SD15 = Checkpoint("sd1", "SD 1.5", 1.066e9, 1.6 * GB)
SDXL = Checkpoint("sdxl", "SDXL", 3.47e9, 6.4 * GB)
CASES = (
    Case("sd15-512-b1", SD15, 512, 1),
    Case("sd15-512-b4", SD15, 512, 4),
    Case("sdxl-1024-b1", SDXL, 1024, 1),
    Case("sdxl-1024-b4", SDXL, 1024, 4),
)
OURS, FP32 = "easel", "diffusers-fp32"
ENGINES = (OURS, FP32, "diffusers-half", "diffusers-best")
TITLES = {
    OURS: "Easel",
    FP32: "diffusers fp32",
    "diffusers-half": "diffusers half",
    "diffusers-best": "diffusers best",
}
LIBRARIES = 0.9 * GB  # Python, torch, diffusers in memory
USUAL_SHARE = 0.35  # of the peak: a cautious guess of how long a case takes
START_S = 20  # of a process, with loading
QUICK_STEPS = 4
MINUTES = 30


Ask = Callable[[dict[str, Any]], dict[str, Any]]


class BenchError(Exception):
    """A sentence for the user."""


def main(argv: Sequence[str], ask: "Ask | None" = None) -> int:
    """`ask`: who does the work, for tests; a process for each task."""
    arguments, flags = parse(argv)
    try:
        command_line.parse(flags)
        with tempfile.TemporaryDirectory(prefix="easel-bench-", dir=arguments.folder) as folder:
            report = Bench(arguments, flags, Path(folder), ask or in_a_process).run()
    except (BenchError, command_line.FlagError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for line in lines_of(report):
        print(textwrap.fill(line, 118, subsequent_indent=" " * 11) if len(line) > 118 and line[:1] != " " else line)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if any("failed" in run for run in ours_in(report)) else 0


# --- running --------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments: argparse.Namespace, flags: list[str], folder: Path, ask: Ask):
        self._arguments, self._flags, self._folder, self._ask = arguments, flags, folder, ask
        self._machine = this_machine()
        self._left_out: list[str] = []
        self._spent = 0.0  # minutes, about, of what was chosen by now

    def run(self) -> dict[str, Any]:
        arguments = self._arguments
        named = arguments.cases or [case.name for case in CASES]
        tell("the machine is measured")
        self._measured = measured = self._task("measure", cases=named)
        self._on_cpu = measured["facts"]["device"] == "cpu"
        self._fast = measured["fast"]
        cases = []
        for name in named:
            case = Case.named(name, arguments.side)
            engines = self._fitting(case)
            if engines:
                cases.append(self._compare(case, engines))
        return {
            "command": shown(arguments, self._flags),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "quick": arguments.quick,
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "warm_up": self._warm_up,
            "threads": arguments.threads,
            "versions": versions(),
            "machine": vars(self._machine),
            "device": {key: measured[key] for key in ("facts", "memory", "memory_free", "fast")},
            "peaks": measured["rates"],
            "flop": {case["name"]: measured["flop"][case["name"]] for case in cases},
            "cases": cases,
            "left_out": self._left_out,
        }

    @property
    def _warm_up(self) -> int:
        """Steps. A GPU chooses its kernels at the first run; a CPU has nothing to gain that the second step has not."""
        given: int | None = self._arguments.warm_up
        return given if given is not None else 0 if self._on_cpu else 4

    def _compare(self, case: Case, engines: Sequence[str]) -> dict[str, Any]:
        if not (self._folder / f"{case.checkpoint.kind}-random.safetensors").exists():
            for file in self._folder.glob("*-random.safetensors"):
                file.unlink()  # one checkpoint at a time: disks of notebooks are small
            tell(f"{case.checkpoint.name}: random weights are made")
            self._task("prepare", case=case)
        runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for number in range(self._arguments.rounds):
            for engine in engines:
                if any("failed" in run for run in runs[engine]):
                    continue
                tell(f"{case}: round {number + 1} of {self._arguments.rounds}, {TITLES[engine]}")
                picture = self._folder / f"{case.name}-{engine}.npy" if number == 0 else None
                runs[engine].append(self._task(engine, case=case, picture=picture))
        return {
            "name": case.name,
            "title": str(case),
            "runs": runs,
            "errors": errors({engine: self._folder / f"{case.name}-{engine}.npy" for engine in engines}),
        }

    def _fitting(self, case: Case) -> list[str]:
        """Which engines run this case here. What somebody named runs in any case."""
        arguments = self._arguments
        wanted = arguments.engines or [engine for engine in ENGINES if not (self._on_cpu and engine == ENGINES[2])]
        if arguments.cases:
            return list(wanted)
        room = self._machine.memory_free if self._on_cpu else self._measured["memory_free"]
        chosen = []
        for engine in sorted(wanted, key=(OURS, "diffusers-best", "diffusers-half", FP32).index):
            dtype = "float32" if engine == FP32 else self._fast
            size = 4 if dtype == "float32" else 2
            needed = case.checkpoint.parameters * size + case.batch * case.checkpoint.work * size / 4
            needed += LIBRARIES if self._on_cpu else 0
            minutes = self._minutes(case, dtype)
            if room is not None and needed > room and (self._on_cpu or engine != OURS):
                why = f"it needs about {needed / GB:.0f} GB of memory, and {room / GB:.1f} GB are free"
            elif self._spent + minutes > arguments.minutes:
                why = f"it would take about {minutes:.0f} min more; --minutes {arguments.minutes} is the limit of all"
            else:
                self._spent += minutes
                chosen.append(engine)
                continue
            self._left_out.append(f"{case}, {TITLES[engine]}: {why}")
        if OURS in wanted and OURS not in chosen:
            return []  # nothing to compare with
        return [engine for engine in wanted if engine in chosen]

    def _minutes(self, case: Case, dtype: str) -> float:
        """About how long one engine's rounds take."""
        flop, rates = self._measured["flop"][case.name], self._measured["rates"][dtype]
        threads = (self._arguments.threads or self._machine.cores) if self._on_cpu else 1
        seconds = limit(flop["step"], rates) * self._arguments.steps + limit(flop["decode"], rates)
        return self._arguments.rounds * (seconds / USUAL_SHARE / threads + START_S) / 60

    def _task(
        self, task: str, case: Case | None = None, cases: Sequence[str] = (), picture: Path | None = None
    ) -> dict[str, Any]:
        """What a process of contenders.py answers; {"failed": a word} when an engine could not."""
        arguments = self._arguments
        asked = {
            "task": task,
            "case": case.name if case else None,
            "cases": list(cases),
            "side": arguments.side,
            "sizes": arguments.sizes,
            "folder": str(self._folder),
            "flags": self._flags,
            "steps": arguments.steps,
            "warm_up": self._warm_up if case else 0,
            "threads": arguments.threads,
            "fast": self._fast if case else None,
            "picture": str(picture) if picture else None,
        }
        answer = self._ask(asked)
        if "failed" in answer and task not in ENGINES:
            raise BenchError(f"the step {task!r} {answer['failed']}")
        return answer


def in_a_process(asked: dict[str, Any]) -> dict[str, Any]:
    """Whatever it did to its memory ends with it."""
    environ = surroundings({name: value for name, value in os.environ.items() if name != "COMMANDLINE_ARGS"})
    if asked["threads"]:
        environ["OMP_NUM_THREADS"] = str(asked["threads"])
    command = [sys.executable, "-m", "bench.contenders", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    tell(done.stderr[-2000:])
    killed = done.returncode == -signal.SIGKILL if hasattr(signal, "SIGKILL") else False
    return {"failed": "was killed; out of memory?" if killed else "failed, see above"}


def limit(flop: Mapping[str, float], rates: Mapping[str, float]) -> float:
    """Seconds that this work takes at the measured peak."""
    return sum(flop[kind] / rates[kind] for kind in ("matrix", "convolution"))


def errors(pictures: Mapping[str, Path]) -> dict[str, Any]:
    """How far each engine's pictures are from those of diffusers in fp32: root of the mean square, of 255."""
    found = {engine: numpy.load(file).astype("float64") for engine, file in pictures.items() if file.exists()}
    if FP32 not in found:
        return {}
    truth = found.pop(FP32)
    rms = {engine: float(((values - truth) ** 2).mean() ** 0.5) for engine, values in found.items()}
    return {"rms": rms, "contrast": float(truth.std())}


def tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


# --- the report -----------------------------------------------------------------------------------------------------


def lines_of(report: Mapping[str, Any]) -> Iterator[str]:
    """For people; made to be pasted into an issue, so it names no folder."""
    machine, facts = report["machine"], report["device"]["facts"]
    on_cpu = facts["device"] == "cpu"
    yield f"{report['command']}    {report['date']}"
    if report["quick"]:
        yield (
            f"QUICK: {report['steps']} steps, {report['rounds']} round(s). A first look; figures to compare or to "
            "publish come from a run without --quick."
        )
    features = f" ({', '.join(facts['processor_features'])})" if facts["processor_features"] else ""
    yield (
        f"machine    {machine['processor']}{features}, {machine['cores']} cores, {machine['memory'] / 2**30:.1f} GiB "
        f"({machine['memory_free'] / 2**30:.1f} free), {machine['system']}"
    )
    if not on_cpu:
        memory = report["device"]["memory"]
        capability = f", compute capability {facts['capability']}" if facts["capability"] else ""
        yield f"device     {facts['name']}{capability}" + (f", {memory / 2**30:.1f} GiB" if memory else "")
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield f"torch      built for {facts['built_for']}, {report['threads'] or facts['threads']} thread(s)"
    for dtype, rates in report["peaks"].items():
        unit = " a CPU second" if on_cpu else " a second"
        yield (
            f"peak       {dtype}: {si(rates['matrix'])}FLOP{unit} in matrix products, "
            f"{si(rates['convolution'])}FLOP in convolutions"
        )
    for case in report["cases"]:
        yield ""
        yield from lines_of_case(case, report, on_cpu)
    if report["left_out"]:
        yield ""
        yield "left out"
        yield from (f"  {sentence}" for sentence in report["left_out"])


def lines_of_case(case: Mapping[str, Any], report: Mapping[str, Any], on_cpu: bool) -> Iterator[str]:
    warm = f", after a picture of {report['warm_up']} steps" if report["warm_up"] else ""
    yield (
        f"{case['title']}: {report['steps']} steps of Euler, CFG scale 7{warm}; "
        f"medians of {report['rounds']} round(s), the engines in turns"
    )
    engines = list(case["runs"])
    width = max(16, *(len(run["how"]) + 2 for runs in case["runs"].values() for run in runs if "how" in run))
    yield " " * 34 + "".join(f"{TITLES[engine]:>{width}}" for engine in engines)
    yield " " * 34 + "".join(f"{case['runs'][engine][0].get('how', ''):>{width}}" for engine in engines)
    for title, cells in rows(case, report, on_cpu):
        if any(cells.values()):
            yield f"{title:34}" + "".join(f"{cells.get(engine) or '-':>{width}}" for engine in engines)
    failed = {engine: run["failed"] for engine, runs in case["runs"].items() for run in runs if "failed" in run}
    yield from (f"  {TITLES[engine]}: {word}" for engine, word in failed.items())
    if contrast := case["errors"].get("contrast"):
        yield f"  (error: root of the mean square against diffusers fp32, of 255; its contrast is {contrast:.1f})"


def rows(case: Mapping[str, Any], report: Mapping[str, Any], on_cpu: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """(title, cell by engine)"""
    runs = {engine: good for engine, all_ in case["runs"].items() if (good := [r for r in all_ if "failed" not in r])}
    fair = "cpu_s" if on_cpu else "s"  # other work on the machine does not count then

    def median(engine: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[engine])

    def row(key: str) -> dict[str, str]:
        return {engine: f"{median(engine, key):.3f}" for engine in runs}

    def share(work: str, dtype: str) -> dict[str, str]:
        flop = report["flop"][case["name"]][work]
        shares = {}
        for engine, some in runs.items():
            best = limit(flop, report["peaks"][some[0][dtype]]) if some[0][dtype] in report["peaks"] else 0
            shares[engine] = f"{best / median(engine, f'{work}_{fair}'):.0%}" if best else ""
        return shares

    def times(key: str) -> dict[str, str]:
        others = [engine for engine in runs if engine != OURS] if OURS in runs else []
        return {engine: f"{median(engine, key) / median(OURS, key):.2f} x" for engine in others}

    def memory(when: str, where: str) -> dict[str, str]:
        found = {engine: [run[when][where] for run in some if where in run[when]] for engine, some in runs.items()}
        return {engine: f"{statistics.median(values) / 1e6:.0f}" for engine, values in found.items() if values}

    yield "seconds a step", row("step_s")
    yield "CPU seconds a step", row("step_cpu_s")
    yield "share of the measured peak", share("step", "dtype")
    yield "step: so many times Easel's", times(f"step_{fair}")
    yield "seconds to decode", row("decode_s")
    yield "CPU seconds to decode", row("decode_cpu_s")
    yield "share of the measured peak", share("decode", "vae_dtype")
    yield "seconds in total", row("total_s")
    yield "CPU seconds in total", row("total_cpu_s")
    yield "total: so many times Easel's", times(f"total_{fair}")
    yield "seconds to load", row("load_s")
    yield "MB at most, main memory", memory("peak", "ram")
    yield "  of them while loading", memory("peak_load", "ram")
    yield "MB at most, device", memory("peak", "device")
    yield "  held by torch", memory("peak", "held")
    yield "error of the picture", {engine: f"{rms:.2f}" for engine, rms in case["errors"].get("rms", {}).items()}


def si(number: float) -> str:
    return f"{number / 1e12:.2f} T" if number >= 1e12 else f"{number / 1e9:.0f} G"


def ours_in(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for case in report["cases"] for run in case["runs"].get(OURS, [])]


def shown(arguments: argparse.Namespace, flags: Sequence[str]) -> str:
    """The command that was given, without folders."""
    words = ["python launch.py bench"]
    for name in ("quick", "cases", "engines", "steps", "rounds", "warm_up", "threads", "minutes"):
        if name in arguments.given:
            value = getattr(arguments, name)
            told = "" if value is True else " " + (",".join(value) if isinstance(value, list) else str(value))
            words.append(f"--{name.replace('_', '-')}{told}")
    return " ".join([*words, *command_line.described(command_line.parse(flags))])


# --- the command line -----------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and Easel's flags among them."""
    parser = argparse.ArgumentParser(
        prog="python launch.py bench",
        description="Times Easel and diffusers' own pipelines on this machine, with random weights of true sizes.",
        epilog="Flags of Easel (--xformers, --medvram, --no-half, --use-cpu all, …) may be given too, and are used.",
        allow_abbrev=False,
    )
    cases, engines = ", ".join(case.name for case in CASES), ", ".join(ENGINES)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one round: a first look")
    parser.add_argument("--cases", type=listed(cases), help=f"of {cases}; without it those that fit this machine")
    parser.add_argument("--engines", type=listed(engines), help=f"of {engines}")
    parser.add_argument("--steps", type=whole(2), help="of each picture (20)")
    parser.add_argument("--rounds", type=whole(1), help="runs of each engine, in turns (2)")
    parser.add_argument("--warm-up", type=whole(0), help="steps of a picture before the one that counts (CPU 0, GPU 4)")
    parser.add_argument("--threads", type=whole(1), help="of the CPU (torch's choice)")
    parser.add_argument("--minutes", type=whole(1), help=f"about the most that all of it may take ({MINUTES})")
    parser.add_argument("--json", metavar="FILE", help="write everything there as well")
    parser.add_argument("--folder", metavar="DIR", help="for the checkpoints (2 and 7 GB), deleted at the end")
    parser.add_argument("--sizes", help=argparse.SUPPRESS)  # for tests: a JSON file with smaller networks
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)  # for tests: pixels
    arguments, flags = parser.parse_known_args(list(argv))
    arguments.given = [name for name, value in vars(arguments).items() if value not in (None, False)]
    arguments.steps = arguments.steps or (QUICK_STEPS if arguments.quick else 20)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 2)
    arguments.minutes = arguments.minutes or MINUTES
    return arguments, flags


def listed(choices: str) -> Callable[[str], list[str]]:
    known = choices.split(", ")

    def read(text: str) -> list[str]:
        words = text.split(",")
        if wrong := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"there is no {wrong[0]!r}; there are {choices}")
        return words

    return read


def whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"it needs a whole number from {least}, got {text!r}")
        return int(text)

    return read


def interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # as by Ctrl-C: the present process is ended and the checkpoint deleted


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
