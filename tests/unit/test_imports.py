"""Imports run one way: what comes early in the pipeline knows nothing of what comes later."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "workflow" / "atomloom"

BEFORE_MODELS = ("data", "graphs", "structures", "targets", "config", "store")

ROOMS = {
    "store": (),
    "targets": (),
    "config": ("targets", "store"),
    "pipeline": ("config", "store"),
    "structures": ("config", "store"),
    "readers": ("structures", "config", "store"),
    "graphs": ("structures", "config", "store"),
    "data": ("graphs", "structures", "targets", "config", "store"),
    "models": ("data", "graphs", "structures", "config", "store"),
    "inference": ("models", *BEFORE_MODELS),
    "training": ("inference", "models", *BEFORE_MODELS),
    "potentials": ("inference", "models", *BEFORE_MODELS),
    "features": ("potentials", "inference", "models", *BEFORE_MODELS),
    "reports": ("structures", "pipeline", "store"),
    "stages": (
        *(
            "reports",
            "features",
            "potentials",
            "training",
            "inference",
            "data",
            "graphs",
            "readers",
        ),
        *("structures", "pipeline", "targets", "config", "store"),
    ),
    "sweeps": ("pipeline", "config", "store"),
    "commands": (
        *("sweeps", "reports"),
        *(
            "stages",
            "features",
            "potentials",
            "training",
            "inference",
            "models",
            "data",
            "graphs",
            "readers",
        ),
        *("structures", "pipeline", "targets", "config", "store"),
    ),
}
"""Room -> the rooms that it may import, besides itself."""

WITHOUT_TORCH = (
    "store",
    "targets",
    "config",
    "pipeline",
    "structures",
    "readers",
    "graphs",
    "reports",
)
OF_ALL = ("errors", "compiled", "former", "__version__")
"""What belongs to no room and knows nothing of any."""


def imports_at_module_level(path: Path) -> set[str]:
    """Modules imported when `path` is imported, type-checking blocks and functions left out."""
    found: set[str] = set()
    nodes: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        found |= imported_by(node)
        if isinstance(node, ast.Try | ast.With):
            nodes += node.body
    return found


def imports_anywhere(path: Path) -> set[str]:
    """Modules that `path` imports: at its head, in functions, and for type checkers alone."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported_by(node)}


def imported_by(node: ast.AST) -> set[str]:
    """Modules that one statement imports; of a name from a package, `package.name`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.module, f"line {node.lineno}: relative import"
        assert node.level == 0, f"line {node.lineno}: relative import"
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imports_anywhere(file):
            package, _, rest = name.partition(".")
            assert package != "snakemake", f"{file.relative_to(PACKAGE)} imports {name}"
            if package == "atomloom":
                allowed = {room, *ROOMS[room], *OF_ALL}
                assert rest.split(".")[0] in allowed, f"{file.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_before_the_models_load_no_torch(room):
    for file in (PACKAGE / room).rglob("*.py"):
        for name in imports_at_module_level(file):
            assert name.split(".")[0] != "torch", f"{file.relative_to(PACKAGE)} imports {name}"


def test_nothing_but_training_loads_lightning():
    """It takes as long to import as torch: a prediction or a calculator starts without it."""
    files = {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("lightning") for name in imports_at_module_level(path))
    }
    assert files
    assert {path.parts[0] for path in files} == {"training"}


@pytest.mark.parametrize("module", ["stages.evaluate", "commands.predict", "potentials.calculator"])
def test_a_prediction_loads_no_training(module):
    """Nor what training loads, from whichever module, and at the head of whichever other it stands."""
    seen, waiting = set(), {f"atomloom.{module}"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if not path.exists():
            continue
        for found in imports_at_module_level(path):
            waiting |= {found, found.rpartition(".")[0]} - seen
    assert "atomloom.inference.predict" in seen
    assert not [name for name in seen if name.startswith(("atomloom.training", "lightning"))]


def test_rooms_import_each_other_in_no_circle():
    TopologicalSorter(ROOMS).prepare()


def test_modules_import_each_other_in_no_circle():
    """Nor would they if what functions import, and type checkers alone, were imported at the head.

    A package's own import by its modules is left out: Python does that, whatever they say.
    """
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for module, path in files.items():
        names = imports_anywhere(path)
        found = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = found & set(files)
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()


def test_every_room_is_listed():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {*ROOMS}


def test_parsing_the_workflow_loads_nothing_heavy():
    """Each job on a cluster parses the workflow again: torch alone would cost it seconds."""
    code = (
        "import sys, atomloom.config, atomloom.pipeline.paths, atomloom.pipeline.plan, atomloom.stages.sources;"
        "print([m for m in ('torch', 'pymatgen', 'ase', 'dgl', 'numba', 'pandas', 'matplotlib', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
