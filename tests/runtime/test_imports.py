"""Each in a process of its own: what is under test is what an import does."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from modules.runtime import imports

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_collector_rests_and_comes_back():
    with imports.no_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.slow
def test_gradio_works_and_writes_no_stub_files():
    code = """
import pathlib, sys
from modules.runtime import imports
imports.skip_gradio_stub_files()
write = pathlib.Path.write_text
pathlib.Path.write_text = lambda self, *a, **k: print("wrote", self) or write(self, *a, **k)
before = len(sys.meta_path)
import gradio
assert len(sys.meta_path) == before - 1
class Mine(gradio.Textbox):
    EVENTS = [gradio.events.Events.change]
with gradio.Blocks():
    Mine().change(lambda x: x)
print("built")
"""
    assert python(code) == "built"


@pytest.mark.slow
def test_transformers_knows_all_that_it_knew():
    code = """
{}
import transformers, transformers.models
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.models.clip import CLIPVisionModel
print(CLIPTextModel, sorted(dir(transformers)), sorted(dir(transformers.models)))
"""
    plain = python(code.format(""))
    shared = python(code.format("from modules.runtime import imports; imports.scan_transformers_once()"))
    assert plain == shared and len(plain) > 10_000


def test_a_module_without_the_function_is_left_alone(tmp_path):
    (tmp_path / "plain_module.py").write_text("value = 1\n")
    (tmp_path / "other_module.py").write_text("def private(): return 1\n")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from modules.runtime import imports
imports._after_loading("plain_module", "private", lambda module: 1 / 0)
imports._after_loading("other_module", "private", lambda module: vars(module).update(private=lambda: 2))
import plain_module, other_module
print(plain_module.value, other_module.private(), plain_module.__file__ is not None)
"""
    assert python(code) == "1 2 True"
