"""Importing large libraries quickly. What is done here changes when things are loaded, never what they do; see
docs/decisions/0001-fast-start.md for what it saves. Imports none of them itself."""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

# transformers' table of contents: what a name needs -> the file -> its names
Structure = dict[frozenset[str], dict[str, set[str]]]


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

    def skip(module: ModuleType) -> None:
        vars(module)["create_or_modify_pyi"] = lambda component_class, class_name, events: None

    _after_loading("gradio.component_meta", "create_or_modify_pyi", skip)


def scan_transformers_once() -> None:
    """transformers reads the head of all its 3000 files to learn what is in them, and soon reads them again to know it
    under shorter names: 0.3 s. Call before the first `import transformers`."""

    def share(module: ModuleType) -> None:
        scan: Callable[[str, None], Structure] = module.define_import_structure

        def define_import_structure(module_path: str | Path, prefix: str | None = None) -> Structure:
            folder = Path(module_path).parent if Path(module_path).is_file() else Path(module_path)
            found = scan(str(folder), None)  # it remembers what it found
            if prefix is None:
                return found
            return {needs: {f"{prefix}.{name}": what for name, what in names.items()} for needs, names in found.items()}

        vars(module)["define_import_structure"] = define_import_structure

    _after_loading("transformers.utils.import_utils", "define_import_structure", share)


def _after_loading(module: str, function: str, change: Callable[[ModuleType], None]) -> None:
    """Lets `module` be found as ever, and has it changed before anybody sees it, if its private `function` is there:
    where a new version has none, there is nothing to save, and all goes its usual way."""
    if module not in sys.modules:
        sys.meta_path.insert(0, _Changed(module, function, change))


class _Changed(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, function: str, change: Callable[[ModuleType], None]):
        self._module, self._function, self._change = module, function, change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if hasattr(module, self._function):
                self._change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
