"""A command imports the libraries that it needs, and no others: on a cluster, each of a thousand jobs starts anew."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.eight_structures import write_project

HEAVY = (
    *("ase", "lightning_fabric", "matplotlib", "numba", "pandas", "pyarrow", "pymatgen"),
    *("scipy.spatial", "scipy.stats", "sklearn", "spglib", "torch"),
)
TABLES = ["pandas", "pyarrow"]
NEEDED = {
    "--help": [],
    "plan --config my.yaml": TABLES,
    "convert --config my.yaml --workers 1": ["numba", "pyarrow"],
    "graphs --config my.yaml --workers 1": ["numba"],
    "index --config my.yaml": TABLES,
    # Formulas are those of pymatgen; these structures are alike, so the leak guard compares them.
    "split --config my.yaml": ["numba", *TABLES, "pymatgen", "scipy.spatial"],
    "status --config my.yaml": [],
    "runs results": [],
}
"""Command -> the heavy libraries that it needs, in the order in which they can be run."""
CODE = """
import json, os, sys
from atomloom.cli import main

found = {}
for command in json.loads(sys.argv[1]):
    told, tells = os.pipe()
    if not os.fork():  # each begins where the command line was just imported
        sys.stdout = sys.stderr
        try:
            assert main(command.split()) == 0, command
        except SystemExit:
            pass
        heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
        os.write(tells, json.dumps(heavy).encode())
        os._exit(0)
    os.close(tells)
    found[command] = json.loads(os.read(told, 1 << 16) or "null")
    os.wait()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_project(folder)
    arguments = [sys.executable, "-c", CODE, json.dumps(list(NEEDED)), json.dumps(HEAVY)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", NEEDED)
def test_a_command_imports_only_what_it_needs(imported, command):
    assert imported[command] == NEEDED[command]
