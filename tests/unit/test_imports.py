"""Imports run one way: what comes early in the pipeline knows nothing of what comes later."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "workflow" / "atomloom"

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
    "inference": ("models", "data", "graphs", "structures", "targets", "config", "store"),
    "training": (
        "inference",
        "models",
        "data",
        "graphs",
        "structures",
        "targets",
        "config",
        "store",
    ),
    "potentials": (
        "inference",
        "models",
        "data",
        "graphs",
        "structures",
        "targets",
        "config",
        "store",
    ),
    "reports": ("pipeline", "store"),
    "stages": (
        *("reports", "potentials", "training", "inference", "data", "graphs", "readers"),
        *("structures", "pipeline", "targets", "config", "store"),
    ),
    "commands": (
        *("stages", "potentials", "training", "inference", "models", "data", "graphs", "readers"),
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
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "atomloom":
                found |= {f"atomloom.{alias.name}" for alias in node.names}
            else:
                found.add(node.module or "")
        elif isinstance(node, ast.Try | ast.With):
            nodes += node.body
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imports_at_module_level(file):
            package, _, rest = name.partition(".")
            assert package != "snakemake", f"{file.relative_to(PACKAGE)} imports {name}"
            if package == "torch":
                assert room not in WITHOUT_TORCH, f"{file.relative_to(PACKAGE)} imports {name}"
            if package == "atomloom":
                allowed = {room, *ROOMS[room], *OF_ALL}
                assert rest.split(".")[0] in allowed, f"{file.relative_to(PACKAGE)} imports {name}"


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
