"""The layout of the code: few files in the root, and imports that point downward."""

import ast
import graphlib
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {"evaluate", "compare", "record", "latent_report", "dream"}
# Not part of the program, or loaded by name.
OUTSIDE = {"tests", "benchmarks", "test_hdreamer"}


def files() -> dict[str, pathlib.Path]:
    """Every module of the program by its name, "envs.gym" for example; a folder has the name of its __init__.py."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in OUTSIDE and not parts[0].startswith((".", "logdir", "venv")):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: pathlib.Path, known: dict) -> set[str]:
    """The modules of the program that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & known.keys()


def graph() -> dict[str, set[str]]:
    known = files()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_the_root_has_few_files():
    assert len(list(ROOT.glob("*.py"))) <= 18


def test_no_modules_and_no_folders_import_each_other_in_a_circle():
    modules = graph()
    tuple(graphlib.TopologicalSorter(modules).static_order())  # raises CycleError
    folders = {}
    for name, imported in modules.items():
        top = name.partition(".")[0]
        folders.setdefault(top, set()).update({other.partition(".")[0] for other in imported} - {top})
    tuple(graphlib.TopologicalSorter(folders).static_order())


def test_imports_point_downward():
    importers = {}
    for name, imported in graph().items():
        for other in imported:
            importers.setdefault(other, set()).add(name)
    assert not any(importers.get(command) for command in COMMANDS)
    assert importers["dreamer"] <= COMMANDS
    assert importers["training.run"] == {"dreamer"}
    assert not {name for name in importers["models"] if name.startswith(("training", "storage", "settings", "envs", "console", "pages"))}


def test_the_worker_processes_of_environments_do_not_import_torch():
    code = "import sys, envs, envs.workers, envs.gym, envs.spaces, envs.dmc; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
