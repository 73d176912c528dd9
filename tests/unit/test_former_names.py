"""Former names of modules: what was written for the version before is still found."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from atomloom import former


@pytest.mark.parametrize("name", former.MODULES)
def test_a_module_that_moved_answers_where_it_was(name):
    sys.modules.pop(f"atomloom.{name}", None)
    with pytest.warns(FutureWarning, match=f"is now atomloom.{former.MODULES[name]};"):
        old = importlib.import_module(f"atomloom.{name}")
    new = importlib.import_module(f"atomloom.{former.MODULES[name]}")
    public = next(key for key in vars(new) if key[:1] != "_")
    assert getattr(old, public) is getattr(new, public)


@pytest.mark.parametrize("module", former.NAMES)
def test_a_class_of_a_former_name_is_found_in_the_former_module(module):
    was = next(old for old, new in former.MODULES.items() if new == module)
    sys.modules.pop(f"atomloom.{was}", None)
    with pytest.warns(FutureWarning):
        old = importlib.import_module(f"atomloom.{was}")
    for name, present in former.NAMES[module].items():
        new = importlib.import_module(f"atomloom.{module}")
        assert getattr(old, name) is getattr(new, present)


def test_a_script_of_the_version_before_runs_and_is_told_once():
    code = (
        "from atomloom.structures import read\n"
        "from atomloom.structures.readers.base import Piece\n"
        "from atomloom.notebook import train\n"
        "from atomloom.layout import PlannedLayout\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [line for line in done.stderr.splitlines() if "the former name will be removed" in line]
    assert len(told) == 5, done.stderr  # the module `structures.readers` is asked for, too
    assert all("; the former name will be removed in the next version" in line for line in told)


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("atomloom.notebooks")
