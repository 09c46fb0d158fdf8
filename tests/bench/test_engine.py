"""The bench of `python launch.py bench`, with tiny networks and in this process; diffusers' real pipelines run."""

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from bench import contenders, engine
from tests.tiny import HEADS, OTHER_HEADS, SIZES

# diffusers tells SDXL's two text encoders apart by their widths.
BIG_G = {**SIZES["sdxl"]["text_encoder_2"], "hidden_size": 48, "projection_dim": 48}
XL = {**SIZES["sdxl"], "text_encoder_2": BIG_G, "unet": {**SIZES["sdxl"]["unet"], "cross_attention_dim": 32 + 48}}
TINY = {
    "sd1": {"parts": SIZES["sd1"], "metadata": HEADS},
    "sdxl": {"parts": XL, "metadata": OTHER_HEADS},
}
HOME = "/home/canary-of-the-user"


@pytest.fixture
def sizes(tmp_path: Path) -> list[str]:
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(TINY), "utf-8")
    return ["--sizes", str(file), "--side", "64", "--folder", str(tmp_path), "--use-cpu", "all"]


def run(*arguments: str, ask: Any = contenders.answer) -> int:
    return engine.main(arguments, ask)


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about themselves
def test_all_engines_do_the_same_work(sizes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    file = tmp_path / "report.json"
    cases = "sd15-512-b1,sdxl-1024-b4"
    assert run(*sizes, "--cases", cases, "--quick", "--steps", "3", "--json", str(file), "--vae-dir", HOME) == 0
    said = capsys.readouterr()
    report = json.loads(file.read_text("utf-8"))
    assert [case["name"] for case in report["cases"]] == cases.split(",")
    for case in report["cases"]:
        assert set(case["runs"]) == {"easel", "diffusers-fp32", "diffusers-best"}
        for (one,) in case["runs"].values():
            assert "failed" not in one
            assert 0 < 2 * one["step_s"] < one["total_s"] and 0 < one["decode_s"] < one["total_s"]
            assert one["load_s"] > 0 and one["peak"]["ram"] >= one["peak_load"]["ram"] > 50e6
        # The same noise, prompt and weights: what is left is the rounding of the dtypes.
        errors = case["errors"]
        assert errors["contrast"] > 10
        assert set(errors["rms"]) == {"easel", "diffusers-best"}
        assert all(error < 0.2 * errors["contrast"] for error in errors["rms"].values())
    for words in (
        "QUICK: 3 steps",
        "SD 1.5, 64 x 64, batch 1",
        "seconds a step",
        "share of the measured peak",
        "torch ",
    ):
        assert words in said.out
    assert "--vae-dir …" in said.out and "python launch.py bench --quick" in said.out
    for text in (said.out, file.read_text("utf-8")):
        assert HOME not in text and str(tmp_path) not in text
    assert not list(tmp_path.glob("easel-bench-*"))


def test_an_engine_that_fails_is_told_and_ours_makes_the_bench_fail(sizes, capsys):
    def without_memory(asked: dict[str, Any]) -> dict[str, Any]:
        return {"failed": "out of memory"} if asked["task"] == wanted else contenders.answer(asked)

    few = [*sizes, "--cases", "sd15-512-b1", "--quick", "--steps", "2", "--engines", "easel,diffusers-best"]
    wanted = "diffusers-best"
    assert run(*few, ask=without_memory) == 0
    assert "diffusers best: out of memory" in capsys.readouterr().out
    wanted = "easel"
    assert run(*few, ask=without_memory) == 1
    assert "Easel: out of memory" in capsys.readouterr().out
    wanted = "prepare"
    assert run(*few, ask=without_memory) == 2
    assert "'prepare' out of memory" in capsys.readouterr().err


def test_what_does_not_fit_is_left_out_and_said():
    flop = {engine.CASES[0].name: contenders.flop_of(engine.CASES[0], {})}

    def bench(gigabytes: float, minutes: int, rate: float) -> tuple[list[str], list[str]]:
        arguments, flags = engine.parse(["--minutes", str(minutes), "--threads", "1"])
        made = engine.Bench(arguments, flags, Path("."), contenders.answer)
        made._machine = Namespace(memory_free=gigabytes * 1e9, cores=1)
        made._on_cpu, made._fast = True, "bfloat16"
        rates = {"float32": dict.fromkeys(("matrix", "convolution"), rate / 4)}
        rates["bfloat16"] = dict.fromkeys(("matrix", "convolution"), rate)
        made._measured = {"rates": rates, "flop": flop}
        return made._fitting(engine.CASES[0]), made._left_out

    assert bench(24, 60, 5e11) == (["easel", "diffusers-fp32", "diffusers-best"], [])
    some, why = bench(24, 20, 5e11)
    assert some == ["easel", "diffusers-best"] and "--minutes 20 is the limit" in why[0]
    some, why = bench(5, 60, 5e11)
    assert some == ["easel", "diffusers-best"] and re.search(
        r"needs about \d GB of memory, and 5.0 GB are free", why[0]
    )
    none, why = bench(2, 60, 5e11)
    assert none == [] and len(why) == 3


def test_the_work_of_a_step_is_counted_as_published():
    flop = contenders.flop_of(engine.CASES[0], {})
    assert 1.5e12 < sum(flop["step"].values()) < 1.7e12  # SD 1.5 at 512²: 0.8 TFLOP a call, two calls a step
    four = contenders.flop_of(engine.CASES[1], {})
    assert sum(four["step"].values()) == 4 * sum(flop["step"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "sd9"], "there is no 'sd9'; there are sd15-512-b1"),
        (["--steps", "1"], "whole number from 2, got '1'"),
        (["--engines", "comfy"], "there is no 'comfy'"),
    ],
)
def test_options_that_mean_nothing(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_flag_that_is_not_there(capsys):
    assert run("--medvarm") == 2
    assert "did you mean --medvram?" in capsys.readouterr().err
