"""Importing large libraries quickly. What is done here changes when things are loaded, never what they do; see
docs/decisions/0001-fast-start.md for what it saves. Imports none of them itself."""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def no_collections() -> Iterator[None]:
    """Imports make many lasting objects and no garbage: the collector would look through them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is here now stays: later collections need not look at it
        gc.enable()


def skip_gradio_stub_files() -> None:
    """Gradio parses the source of every component as it is imported, to write .pyi files for editors beside it: half of
    its import time, and a write into site-packages. Call before the first `import gradio`."""
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, _WithoutStubFiles())


class _WithoutStubFiles(importlib.abc.MetaPathFinder):
    """Lets `gradio.component_meta` be found as ever, and empties its writer of stub files once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "gradio.component_meta":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if hasattr(module, "create_or_modify_pyi"):  # private to Gradio: without it, there is nothing to save
                module.create_or_modify_pyi = lambda component_class, class_name, events: None

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
