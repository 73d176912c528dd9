"""The command line itself, whatever the stage."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from atomloom.cli import main
assert "torch" not in sys.modules, "too late to tell its threads how to wait"
main(["plan", "--config", "there-is-none.yaml"])
print(os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_leave_the_processor_to_others_unless_told_otherwise(given, expected):
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | given
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == expected
