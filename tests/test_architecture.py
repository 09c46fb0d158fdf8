"""The house's rules (docs/architecture.md), held by reading every file: who imports whom, and what is imported."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = ROOT / "modules"

# From the faces down to the ground; a row's packages do not see each other.
LAYERS: list[set[str]] = [
    {"compat"},
    {"web", "server"},
    {"app"},
    {"jobs"},
    {"gallery"},
    {"generation", "training"},
    {"families", "postprocess"},
    {"settings", "plugins", "library"},
    {"prompt", "diffusion", "imaging", "runtime"},
]
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}

ONLY_IN = {
    "gradio": {"web", "compat"},
    "gradio_client": {"web", "compat"},
    "fastapi": {"server"},
    "uvicorn": set(),  # webui.py alone
    "diffusers": {"families"},
    "transformers": {"families"},
    "torch": {"diffusion", "families", "generation", "postprocess", "training", "runtime"},
}
STDLIB_ONLY = ["flags", "paths", "logs", "listening", "installing", "supervising", "surroundings", "version"]

# What A1111 calls its own modules: `modules.<name>` is theirs, so that `from modules import shared` of an extension can
# one day mean what it meant.
A1111_NAMES = set(
    """
    api cache call_queue cmd_args codeformer deepbooru devices errors esrgan_model extensions extra_networks extras
    face_restoration generation_parameters_copypaste gfpgan_model gitpython_hack hashes hypernetworks images img2img
    infotext_utils infotext_versions initialize initialize_util interrogate launch_utils localization logging_config
    lowvram masking memmon modelloader models ngrok options patches paths paths_internal postprocessing processing
    progress prompt_parser realesrgan_model restart rng rng_philox safe script_callbacks script_loading scripts
    scripts_auto_postprocessing scripts_postprocessing sd_disable_initialization sd_emphasis sd_hijack sd_hijack_clip
    sd_hijack_optimizations sd_hijack_unet sd_models sd_models_config sd_models_xl sd_samplers sd_samplers_common
    sd_samplers_extra sd_samplers_kdiffusion sd_samplers_timesteps sd_schedulers sd_unet sd_vae sd_vae_approx
    sd_vae_taesd shared shared_cmd_options shared_gradio_themes shared_init shared_items shared_options shared_state
    shared_total_tqdm styles sub_quadratic_attention sysinfo textual_inversion timer torch_utils txt2img ui ui_common
    ui_components ui_extra_networks ui_gradio_extensions ui_loadsave ui_postprocessing ui_prompt_styles ui_settings
    ui_tempdir ui_toprow upscaler upscaler_utils util xlmr xpu_specific
    """.split()
)


def sources() -> list[Path]:
    return sorted(MODULES.rglob("*.py"))


def package_of(file: Path) -> str:
    """`modules/jobs/queue.py` lies in jobs, `modules/app.py` is app, `modules/__init__.py` is nothing's."""
    first = file.relative_to(MODULES).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported, inside functions and under TYPE_CHECKING too."""
    inside = ["modules", *file.relative_to(MODULES).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, origin
            # `from modules import app` and `from modules.jobs import queue` name modules too
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names if origin == "modules")


def test_every_package_has_its_floor():
    found = {package_of(file) for file in sources()} - {""}
    assert found <= set(FLOOR), f"docs/architecture.md and LAYERS say nothing of {sorted(found - set(FLOOR))}"
    assert len(found) > 8


def test_imports_point_down():
    wrong = []
    for file in sources():
        here = package_of(file)
        for line, name in imports(file):
            parts = name.split(".")
            if parts[0] != "modules" or len(parts) < 2 or parts[1] == here or not here:
                continue
            there = parts[1]
            if there not in FLOOR or FLOOR[there] <= FLOOR[here]:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {here} may not import {name}")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_in_their_rooms():
    wrong = []
    for file in sources():
        for line, name in imports(file):
            library = name.split(".")[0]
            if library in ONLY_IN and package_of(file) not in ONLY_IN[library]:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {library} is for {sorted(ONLY_IN[library])} only")
    assert not wrong, "\n".join(wrong)


def test_what_launch_imports_needs_nothing_installed():
    for name in STDLIB_ONLY:
        foreign = {
            library
            for _, found in imports(MODULES / "runtime" / f"{name}.py")
            if (library := found.split(".")[0]) not in sys.stdlib_module_names and library != "modules"
        }
        assert not foreign, f"runtime/{name}.py imports {foreign}"


def test_nobody_imports_by_a1111s_names_or_reaches_into_compat():
    wrong = []
    for file in [*sources(), *ROOT.glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == "modules":
                names = [f"modules.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                second = name.split(".")[1] if name.startswith("modules.") else ""
                if second in A1111_NAMES or (
                    second == "compat" and "compat" not in file.parts and file.name != "webui.py"
                ):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not wrong, "\n".join(wrong)


def test_no_package_of_ours_has_a_name_of_theirs():
    ours = {package_of(file) for file in sources()} - {""}
    assert not ours & A1111_NAMES


def test_the_names_are_those_that_extensions_use(golden):
    rows = (golden.parent / "facts" / "api_surface.tsv").read_text().splitlines()[1:]
    used = {row.split("\t")[4].split(".")[1] for row in rows if row.split("\t")[4].startswith("modules.")}
    assert len(used) > 50 and used <= A1111_NAMES


def test_nothing_is_printed():
    wrong = []
    for file in sources():
        calls = (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call))
        wrong += [
            f"{file.relative_to(ROOT)}:{call.lineno}" for call in calls if getattr(call.func, "id", "") == "print"
        ]
    assert not wrong, f"what is to be said goes to the log: {wrong}"


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [file for file in sources() if drawers & {part.removesuffix(".py") for part in file.parts[-2:]}]


def importable(packages: set[str]) -> list[str]:
    found = []
    for module in pkgutil.walk_packages([str(MODULES)], "modules."):
        if module.name.split(".")[1] in packages:
            found.append(module.name)
    return found


def test_every_file_can_be_imported():
    names = importable(set(FLOOR))
    assert len(names) > 40
    for name in names:
        importlib.import_module(name)


# The page is up before torch is there: these are imported before it, so they must not bring it along.
TORCH_FREE = importable({"app", "gallery", "imaging", "library", "prompt", "server", "settings", "web"}) + [
    "modules.diffusion.names",
    "modules.generation.fields",
    "modules.generation.infotext",
    "modules.generation.made",
    "modules.generation.reading",
    "modules.generation.plan",
    "modules.generation.progress",
    "modules.generation.request",
    *importable({"jobs"}),
]


@pytest.mark.slow
def test_the_page_comes_without_torch():
    code = f"""
import importlib, sys
for name in {TORCH_FREE}: importlib.import_module(name)
import webui
print([name for name in ("torch", "diffusers", "transformers", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert "modules.jobs.worker" in TORCH_FREE and "modules.web.page" in TORCH_FREE
