"""Benchmarks behind docs/measured.md: `python -m benchmarks.speed.readers` and the like, from the root.

A checkout that is not installed runs them too: its own package is then found here.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("atomloom") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
