"""Imports run one way: what comes early in the pipeline knows nothing of what comes later."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "workflow" / "atomloom"

FORBIDDEN = {
    "keys.py": ("torch", "atomloom.config", "atomloom.structures", "atomloom.graphs"),
    "config": (
        "torch",
        "snakemake",
        "atomloom.structures",
        "atomloom.graphs",
        "atomloom.models",
        "atomloom.stages",
    ),
    "structures": (
        "torch",
        "snakemake",
        "atomloom.graphs",
        "atomloom.models",
        "atomloom.training",
        "atomloom.stages",
    ),
    "graphs": (
        "torch",
        "snakemake",
        "atomloom.data",
        "atomloom.models",
        "atomloom.training",
        "atomloom.stages",
    ),
    "shards.py": ("torch", "atomloom.structures", "atomloom.graphs"),
    "data": ("snakemake", "atomloom.models", "atomloom.training", "atomloom.stages"),
    "models": ("snakemake", "atomloom.training", "atomloom.stages"),
    "training": ("snakemake", "atomloom.stages", "atomloom.reports", "atomloom.potentials"),
    "potentials": ("snakemake", "atomloom.stages", "atomloom.reports"),
    "reports": ("torch", "snakemake", "atomloom.training", "atomloom.models", "atomloom.stages"),
    "stages": ("snakemake", "atomloom.cli"),
}


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
            found.add(node.module or "")
        elif isinstance(node, ast.Try | ast.With):
            nodes += node.body
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_run_one_way(part):
    place = PACKAGE / part
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        for name in imports_at_module_level(file):
            wrong = [bad for bad in FORBIDDEN[part] if name == bad or name.startswith(bad + ".")]
            assert not wrong, f"{file.relative_to(PACKAGE)} imports {name}"


def test_parsing_the_workflow_loads_nothing_heavy():
    """Each job on a cluster parses the workflow again: torch alone would cost it seconds."""
    code = (
        "import sys, atomloom.config, atomloom.layout, atomloom.plan, atomloom.stages.sources;"
        "print([m for m in ('torch', 'pymatgen', 'ase', 'dgl', 'numba', 'pandas', 'matplotlib', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
